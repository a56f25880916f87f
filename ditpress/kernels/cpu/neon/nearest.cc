// The cheapest codeword of every point.
#include "../simd/floats_neon.h"
#include "../simd/nearest.h"

#include "common.h"

void ditpress::neon::nearest(const NearestJob& job) { ditpress::nearest<Floats>(job); }
