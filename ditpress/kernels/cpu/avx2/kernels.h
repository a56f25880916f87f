#pragma once

#include "../core.h"

namespace ditpress {

// For a CPU with AVX2, FMA and F16C (which every CPU with the first two has).
Kernels avx2_kernels();

}  // namespace ditpress
