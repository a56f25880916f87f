#pragma once

#include "../core.h"

namespace ditpress {

// For a CPU with AVX-VNNI besides what avx2_kernels needs.
Kernels avxvnni_kernels();

}  // namespace ditpress
