// What happens to 16 values of a result before they are stored.
#pragma once

#include "common.h"

namespace ditpress {
namespace {

enum class Finish { kStore, kGelu, kGate };

DITPRESS_INLINE Finish finish_of(const Epilogue& e) {
  return e.gelu ? Finish::kGelu : e.gate ? Finish::kGate : Finish::kStore;
}

// GELU in its tanh form (Hendrycks and Gimpel 2016): x * sigmoid(2 sqrt(2 / pi) (x + 0.044715 x**3)), the sigmoid by the
// polynomial 1/2 + c Q(c**2) of c = x clamped to [-4.1, 4.1]. Q minimises the largest error of the product over that
// range: within 1.3e-5 * max(1, |x|) of the exact value everywhere, a six-hundredth of the int8 step that follows.
DITPRESS_INLINE __m512 gelu(__m512 x) {
  constexpr float kQ[9] = {3.98840247e-1f,  -6.65638201e-2f, 9.98376238e-3f,  -1.15554121e-3f, 1.00495245e-4f,
                           -6.26480919e-6f, 2.60256433e-7f,  -6.37881141e-9f, 6.92491192e-11f};
  constexpr int kSmallerMagnitude = 2;  // of the two, with the sign of the first
  const __m512 c = _mm512_range_ps(x, _mm512_set1_ps(4.1f), kSmallerMagnitude);
  const __m512 z = _mm512_mul_ps(c, c);
  __m512 q = _mm512_set1_ps(kQ[8]);
  DITPRESS_EACH(8, i) q = _mm512_fmadd_ps(q, z, _mm512_set1_ps(kQ[7 - i])); DITPRESS_END
  return _mm512_mul_ps(x, _mm512_fmadd_ps(c, q, _mm512_set1_ps(0.5f)));
}

// The gate's row for row `r` of the job.
DITPRESS_INLINE const float* gate_row(const Epilogue& e, int64_t r) {
  return e.gate + (e.gate_first + r) / e.gate_rows * e.gate_stride;
}

// 16 values of row `r` of the job, from column `column` of the panel.
DITPRESS_INLINE __m512 finish_gate(const Epilogue& e, __m512 y, int64_t r, int column, __mmask16 mask) {
  const __m512 gate = _mm512_maskz_loadu_ps(mask, gate_row(e, r) + column);
  return _mm512_fmadd_ps(gate, y, _mm512_maskz_loadu_ps(mask, e.residual + r * e.stride + column));
}

}  // namespace
}  // namespace ditpress
