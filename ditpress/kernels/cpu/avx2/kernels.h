#pragma once

#include "../core.h"

namespace ditpress {

// For a CPU with AVX2 and FMA.
Kernels avx2_kernels();

}  // namespace ditpress
