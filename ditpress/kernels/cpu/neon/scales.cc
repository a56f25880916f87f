// The best of several scales for every group of weights.
#include "../simd/floats_neon.h"
#include "../simd/scales.h"

#include "common.h"

void ditpress::neon::best_scales(const ScaleJob& job) { ditpress::best_scales<Floats>(job); }
