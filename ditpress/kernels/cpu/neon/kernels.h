#pragma once

#include "../core.h"

namespace ditpress {

// For an AArch64 CPU with dot products (FEAT_DotProd).
Kernels neon_kernels();

}  // namespace ditpress
