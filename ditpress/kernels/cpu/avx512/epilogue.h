// What happens to 16 values of a result before they are stored.
#pragma once

#include "common.h"

namespace ditpress {
namespace {

enum class Finish { kStore, kGelu, kGate };

DITPRESS_INLINE Finish finish_of(const Epilogue& e) {
  return e.gelu ? Finish::kGelu : e.gate ? Finish::kGate : Finish::kStore;
}

// 2**t for t <= 126, by 2**whole * polynomial on [-1/2, 1/2] (Taylor terms to t**6, relative error below 2e-7).
DITPRESS_INLINE __m512 exp2_of(__m512 t) {
  t = _mm512_max_ps(_mm512_set1_ps(-150.0f), t);  // in this order a NaN stays
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

// GELU in its tanh form as x * sigmoid(2 u), u = sqrt(2 / pi) * (x + 0.044715 x**3): Hendrycks and Gimpel 2016.
// Within 1e-6 * max(1, |x|) of the exact value.
DITPRESS_INLINE __m512 gelu(__m512 x) {
  constexpr float kLog2e = 1.44269504f, kSlope = -2.0f * 0.79788456f * kLog2e;
  const __m512 square = _mm512_mul_ps(x, x);
  const __m512 inner = _mm512_fmadd_ps(square, _mm512_set1_ps(kSlope * 0.044715f), _mm512_set1_ps(kSlope));
  const __m512 t = _mm512_min_ps(_mm512_set1_ps(126.0f), _mm512_mul_ps(x, inner));
  const __m512 whole = _mm512_add_ps(exp2_of(t), _mm512_set1_ps(1.0f));
  __m512 r = _mm512_rcp14_ps(whole);
  r = _mm512_mul_ps(r, _mm512_fnmadd_ps(whole, r, _mm512_set1_ps(2.0f)));  // Newton: to full precision
  return _mm512_mul_ps(x, r);
}

// The gate's row for row `r` of the job.
DITPRESS_INLINE const float* gate_row(const Epilogue& e, int64_t r) {
  return e.gate + (e.gate_first + r) / e.gate_rows * e.stride;
}

// 16 values of row `r` of the job, from column `column` of the panel.
DITPRESS_INLINE __m512 finish_gate(const Epilogue& e, __m512 y, int64_t r, int column, __mmask16 mask) {
  const __m512 gate = _mm512_maskz_loadu_ps(mask, gate_row(e, r) + column);
  return _mm512_fmadd_ps(gate, y, _mm512_maskz_loadu_ps(mask, e.residual + r * e.stride + column));
}

DITPRESS_INLINE __m512 finish(const Epilogue& e, __m512 y, int64_t r, int column, __mmask16 mask) {
  return e.gelu ? gelu(y) : e.gate ? finish_gate(e, y, r, column, mask) : y;
}

}  // namespace
}  // namespace ditpress
