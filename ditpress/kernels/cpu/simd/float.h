// Weight-only products: float rows against a panel of 16 columns of bytes that are widened in registers. V: a `Floats`
// of this folder.
#pragma once

#include "epilogue.h"

namespace ditpress {
namespace {

constexpr int kFloatColumns = 16;

template <class V, int Rows>
__attribute__((noinline)) void float_tile(const FloatJob& job, int64_t row) {
  constexpr int kLanes = V::kLanes, kVectors = kFloatColumns / kLanes;
  const int64_t padded_k = job.groups * job.group_chunks * kChunk;
  const float* x = job.x + row * padded_k;
  const uint8_t* w = job.weights;
  typename V::Vector f[Rows][kVectors];
  DITPRESS_EACH(Rows, r) DITPRESS_EACH(kVectors, v) f[r][v] = V::zero(); DITPRESS_END DITPRESS_END
  for (int64_t g = 0; g < job.groups; ++g) {
    typename V::Vector acc[Rows][kVectors];
    DITPRESS_EACH(Rows, r) DITPRESS_EACH(kVectors, v) acc[r][v] = V::zero(); DITPRESS_END DITPRESS_END
    for (int64_t quad = 0; quad < job.group_chunks * 4; ++quad, x += 4, w += kFloatColumns * 4)
      DITPRESS_EACH(4, i)
        DITPRESS_EACH(kVectors, v)
          const auto weight = V::template from_byte<decltype(i)::value>(w + v * kLanes * 4);
          DITPRESS_EACH(Rows, r)
            acc[r][v] = V::fma(V::fill(x[r * padded_k + i]), weight, acc[r][v]);
          DITPRESS_END
        DITPRESS_END
      DITPRESS_END
    DITPRESS_EACH(kVectors, v)
      const auto scale = V::load(job.scale + g * kFloatColumns + kLanes * v);
      DITPRESS_EACH(Rows, r) f[r][v] = V::fma(acc[r][v], scale, f[r][v]); DITPRESS_END
    DITPRESS_END
  }
  float y[Rows * kFloatColumns];
  DITPRESS_EACH(kVectors, v)
    const auto bias = V::load(job.bias + kLanes * v);
    DITPRESS_EACH(Rows, r)
      V::store(y + r * kFloatColumns + kLanes * v, V::add(f[r][v], bias));
    DITPRESS_END
  DITPRESS_END
  store_tile<V>({job.epilogue, job.y, job.y_stride, job.columns, row}, y, Rows);
}

template <class V>
DITPRESS_INLINE void float_tiles(const FloatJob& job) {
  constexpr int kRows = V::kWeightOnlyRows;
  for (int64_t row = 0; row < job.m; row += kRows) {
    const int64_t rows = job.m - row < kRows ? job.m - row : kRows;
    DITPRESS_EACH(kRows, i)
      if (rows == i + 1) float_tile<V, i + 1>(job, row);
    DITPRESS_END
  }
}

}  // namespace
}  // namespace ditpress
