// Attention with products of bfloat16 pairs and sums in float32 (AVX512_BF16).
#include "attention.h"

namespace ditpress {
namespace {

struct Bf16Dot {
  static constexpr int kPer = 2;

  static DITPRESS_INLINE __m512i dwords(const float* x, int64_t count) {
    const __m512 low = _mm512_maskz_loadu_ps(first_lanes(count), x);
    const __m512 high = _mm512_maskz_loadu_ps(first_lanes(count - 16), x + 16);
    return reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(high, low));
  }
  // Two rows of values, interleaved.
  static DITPRESS_INLINE __m512i across(const float* x, int64_t stride, int64_t rows, __mmask16 mask) {
    const __m512 even = _mm512_maskz_loadu_ps(rows > 0 ? mask : 0, x);
    const __m512 odd = _mm512_maskz_loadu_ps(rows > 1 ? mask : 0, x + stride);
    const __m512i both = reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(odd, even));
    const __m512i low = _mm512_cvtepu16_epi32(_mm512_castsi512_si256(both));
    const __m512i high = _mm512_cvtepu16_epi32(_mm512_extracti64x4_epi64(both, 1));
    return _mm512_or_si512(low, _mm512_slli_epi32(high, 16));
  }
  static DITPRESS_INLINE __m512 add(__m512 acc, __m512i a, __m512i b) {
    return _mm512_dpbf16_ps(acc, reinterpret_cast<__m512bh>(b), reinterpret_cast<__m512bh>(a));
  }
  // Probabilities are kept in 8 bits of mantissa: a cubic polynomial is exact enough (1e-4).
  static DITPRESS_INLINE __m512 exp2(__m512 t) {
    const __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const __m512 f = _mm512_sub_ps(t, whole);
    __m512 p = _mm512_set1_ps(5.5e-2f);
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4226e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
    p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
    return _mm512_scalef_ps(p, whole);
  }
  // 32 probabilities take the place of the first 16 scores of the two vectors: always behind what is still read.
  static DITPRESS_INLINE void store_probabilities(float* scores, int64_t s, __m512 first, __m512 second) {
    _mm512_storeu_si512(scores + s / 2, reinterpret_cast<__m512i>(_mm512_cvtne2ps_pbh(second, first)));
  }
};

}  // namespace

void avx512::attention_bf16(const AttentionJob& job) { attend<Bf16Dot>(job); }

}  // namespace ditpress
