#pragma once

#include "../core.h"

namespace ditpress {

// For any CPU.
Kernels portable_kernels();

}  // namespace ditpress
