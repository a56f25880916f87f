// The best of several scales for every group of weights.
#include "../simd/floats_avx2.h"
#include "../simd/scales.h"

#include "common.h"

void ditpress::avx2::best_scales(const ScaleJob& job) { ditpress::best_scales<Floats>(job); }
