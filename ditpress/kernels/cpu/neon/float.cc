// Weight-only products.
#include "../simd/floats_neon.h"
#include "../simd/float.h"

#include "common.h"

void ditpress::neon::float_panel(const FloatJob& job) { float_tiles<Floats>(job); }
