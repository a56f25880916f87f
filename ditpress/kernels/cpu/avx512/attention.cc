// Attention in float32.
#include "attention.h"

namespace ditpress {
namespace {

// 2**t for finite t <= 126, by 2**whole * polynomial on [-1/2, 1/2] (Taylor terms to t**6, relative error below 2e-7).
DITPRESS_INLINE __m512 exp2_of(__m512 t) {
  const __m512 whole = _mm512_roundscale_ps(t, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  const __m512 f = _mm512_sub_ps(t, whole);
  __m512 p = _mm512_set1_ps(1.5403530e-4f);
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.3333558e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(9.6181291e-3f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(5.5504109e-2f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(2.4022651e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(6.9314718e-1f));
  p = _mm512_fmadd_ps(p, f, _mm512_set1_ps(1.0f));
  return _mm512_scalef_ps(p, whole);
}

struct FloatDot {
  static constexpr int kPer = 1;

  // 16 values as dwords, zero from `count` on.
  static DITPRESS_INLINE __m512i dwords(const float* x, int64_t count) {
    return _mm512_castps_si512(_mm512_maskz_loadu_ps(first_lanes(count), x));
  }
  // One row of values; `rows` says how many there are.
  static DITPRESS_INLINE __m512i across(const float* x, int64_t, int64_t rows, __mmask16 mask) {
    return _mm512_castps_si512(_mm512_maskz_loadu_ps(rows > 0 ? mask : 0, x));
  }
  static DITPRESS_INLINE __m512 add(__m512 acc, __m512i a, __m512i b) {
    return _mm512_fmadd_ps(_mm512_castsi512_ps(a), _mm512_castsi512_ps(b), acc);
  }
  static DITPRESS_INLINE __m512 exp2(__m512 t) { return exp2_of(t); }
  static DITPRESS_INLINE void store_probabilities(float* scores, int64_t s, __m512 first, __m512 second) {
    _mm512_storeu_ps(scores + s, first);
    _mm512_storeu_ps(scores + s + 16, second);
  }
};

}  // namespace

void avx512::attention(const AttentionJob& job) { attend<FloatDot>(job); }

}  // namespace ditpress
