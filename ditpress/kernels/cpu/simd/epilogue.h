// What happens to one vector of results before it is stored. V: a `Floats` of this folder.
#pragma once

#include "../core.h"
#include "../unroll.h"

namespace ditpress {
namespace {

// 2**t for t <= 126, by 2**whole * polynomial on [-1/2, 1/2] (Taylor terms to t**6, relative error below 2e-7). Results
// below the smallest normal number are zero.
template <class V>
DITPRESS_INLINE typename V::Vector exp2_of(typename V::Vector t) {
  t = V::max(V::fill(-127.0f), t);
  const auto whole = V::round(t);
  const auto f = V::sub(t, whole);
  auto p = V::fill(1.5403530e-4f);
  p = V::fma(p, f, V::fill(1.3333558e-3f));
  p = V::fma(p, f, V::fill(9.6181291e-3f));
  p = V::fma(p, f, V::fill(5.5504109e-2f));
  p = V::fma(p, f, V::fill(2.4022651e-1f));
  p = V::fma(p, f, V::fill(6.9314718e-1f));
  p = V::fma(p, f, V::fill(1.0f));
  return V::mul(p, V::power_of_two(whole));
}

// GELU in its tanh form as x * sigmoid(2 u), u = sqrt(2 / pi) * (x + 0.044715 x**3): Hendrycks and Gimpel 2016.
// Within 1e-6 * max(1, |x|) of the exact value.
template <class V>
DITPRESS_INLINE typename V::Vector gelu(typename V::Vector x) {
  constexpr float kLog2e = 1.44269504f, kSlope = -2.0f * 0.79788456f * kLog2e;
  const auto inner = V::fma(V::mul(x, x), V::fill(kSlope * 0.044715f), V::fill(kSlope));
  const auto t = V::min(V::fill(126.0f), V::mul(x, inner));
  return V::div(x, V::add(exp2_of<V>(t), V::fill(1.0f)));
}

// The first `count` of the values of row `r` of the job from column `n` of the panel.
template <class V>
DITPRESS_INLINE typename V::Vector finish(const Epilogue& e, typename V::Vector y, int64_t r, int n, int64_t count) {
  if (e.gelu) return gelu<V>(y);
  if (!e.gate) return y;
  const float* gate = e.gate + (e.gate_first + r) / e.gate_rows * e.stride + n;
  return V::fma(V::load_first(gate, count), y, V::load_first(e.residual + r * e.stride + n, count));
}

// Where a tile of a panel goes: `row` counts from the first row of the job.
struct TileEnd {
  const Epilogue& epilogue;
  float* y;  // column of the panel in row 0
  int64_t y_stride;
  int columns;
  int64_t row;
};

// `rows` rows of 16 values, finished and stored. One function for all tiles: a copy for each would only be long.
template <class V>
__attribute__((noinline)) void store_tile(const TileEnd& end, const float* values, int rows) {
  constexpr int kColumns = 16;
  for (int64_t r = end.row; r < end.row + rows; ++r, values += kColumns)
    for (int n = 0; n < end.columns; n += V::kLanes) {
      const int64_t left = end.columns - n;
      V::store_first(end.y + r * end.y_stride + n, finish<V>(end.epilogue, V::load(values + n), r, n, left), left);
    }
}

template <class V>
DITPRESS_INLINE void sum_parts(const SumJob& job) {
  for (int n = 0; n < job.columns; n += V::kLanes) {
    const int64_t left = job.columns - n;
    const auto small = V::add(V::load_first(job.parts[1] + n, left), V::load_first(job.parts[2] + n, left));
    const auto sum = V::add(V::load_first(job.parts[0] + n, left), small);
    const auto y = V::add(sum, V::load_first(job.bias + n, left));
    V::store_first(job.y + n, finish<V>(job.epilogue, y, job.row, n, left), left);
  }
}

}  // namespace
}  // namespace ditpress
