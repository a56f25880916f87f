// Attention in float32.
#include "../simd/floats_avx2.h"
#include "../simd/attention.h"

#include "common.h"

void ditpress::avx2::attention(const AttentionJob& job) { attend<Floats>(job); }
