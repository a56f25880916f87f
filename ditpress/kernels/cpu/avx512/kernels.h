#pragma once

#include "../core.h"

namespace ditpress {

// For a CPU with AVX-512 F, BW, DQ, VL and VNNI, and with VBMI and BF16 when told so.
Kernels avx512_kernels(bool vbmi, bool bf16);

}  // namespace ditpress
