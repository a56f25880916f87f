// Attention in float32.
#include "../simd/floats_neon.h"
#include "../simd/attention.h"

#include "common.h"

void ditpress::neon::attention(const AttentionJob& job) { attend<Floats>(job); }
