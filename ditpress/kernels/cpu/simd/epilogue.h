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

// Row `r` of the job's gates.
DITPRESS_INLINE int64_t gate_row(const Epilogue& e, int64_t r) { return (e.gate_first + r) / e.gate_rows; }

// gate * y + residual for the first `count` values of row `r` of the job from column `n` of the panel.
template <class V>
DITPRESS_INLINE typename V::Vector add_gated(const Epilogue& e, const float* gate, typename V::Vector y, int64_t r, int n,
                                             int64_t count) {
  return V::fma(V::load_first(gate + n, count), y, V::load_first(e.residual + r * e.stride + n, count));
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
  const Epilogue& e = end.epilogue;
  const auto store = [&](auto&& finish) __attribute__((always_inline)) {
    float* y = end.y + end.row * end.y_stride;
    if (end.columns == kColumns) {
      for (int r = 0; r < rows; ++r, y += end.y_stride, values += kColumns)
        DITPRESS_EACH(kColumns / V::kLanes, v)
          V::store(y + V::kLanes * v, finish(V::load(values + V::kLanes * v), r, V::kLanes * v, V::kLanes));
        DITPRESS_END
      return;
    }
    for (int r = 0; r < rows; ++r, y += end.y_stride, values += kColumns)
      for (int n = 0; n < end.columns; n += V::kLanes) {
        const int64_t left = end.columns - n;
        V::store_first(y + n, finish(V::load(values + n), r, n, left), left);
      }
  };
  if (e.gelu) return store([](auto y, int, int, int64_t) __attribute__((always_inline)) { return gelu<V>(y); });
  if (!e.gate) return store([](auto y, int, int, int64_t) __attribute__((always_inline)) { return y; });
  // A division a tile, not one a row.
  const int64_t item = gate_row(e, end.row), next = (item + 1) * e.gate_rows - e.gate_first - end.row;
  const float* const gate = e.gate + item * e.gate_stride;
  if (next >= rows)
    return store([&](auto y, int r, int n, int64_t count) __attribute__((always_inline)) {
      return add_gated<V>(e, gate, y, end.row + r, n, count);
    });
  store([&](auto y, int r, int n, int64_t count) __attribute__((always_inline)) {
    return add_gated<V>(e, e.gate + gate_row(e, end.row + r) * e.gate_stride, y, end.row + r, n, count);
  });
}

template <class V>
DITPRESS_INLINE void sum_parts(const SumJob& job) {
  const Epilogue& e = job.epilogue;
  const float* const gate = e.gate ? e.gate + gate_row(e, job.row) * e.gate_stride : nullptr;
  for (int n = 0; n < job.columns; n += V::kLanes) {
    const int64_t left = job.columns - n;
    const auto small = V::add(V::load_first(job.parts[1] + n, left), V::load_first(job.parts[2] + n, left));
    const auto sum = V::add(V::load_first(job.parts[0] + n, left), small);
    auto y = V::add(sum, V::load_first(job.bias + n, left));
    if (e.gelu) y = gelu<V>(y);
    else if (gate) y = add_gated<V>(e, gate, y, job.row, n, left);
    V::store_first(job.y + n, y, left);
  }
}

}  // namespace
}  // namespace ditpress
