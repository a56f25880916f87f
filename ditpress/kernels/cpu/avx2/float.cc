// Weight-only products.
#include "../simd/floats_avx2.h"
#include "../simd/float.h"

#include "common.h"

void ditpress::avx2::float_panel(const FloatJob& job) { float_tiles<Floats>(job); }
