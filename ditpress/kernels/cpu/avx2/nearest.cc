// The cheapest codeword of every point.
#include "../simd/floats_avx2.h"
#include "../simd/nearest.h"

#include "common.h"

void ditpress::avx2::nearest(const NearestJob& job) { ditpress::nearest<Floats>(job); }
