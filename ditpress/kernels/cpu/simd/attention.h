// Attention of one head in float32: softmax(scale * q k^T + mask) v, keys and values packed once, queries in tiles of a
// few rows. V: a `Floats` of this folder.
//
// Packed keys:   [keys / 16][width][16 keys]
// Packed values: [keys][width padded to whole vectors], of the keys that are there alone
#pragma once

#include <cmath>

#include "epilogue.h"

namespace ditpress {
namespace {

constexpr int kKeyPanel = 16;

template <class V>
struct HeadSpace {
  static constexpr int kLanes = V::kLanes;
  explicit HeadSpace(const AttentionJob& job)
      : keys((job.keys + kKeyPanel - 1) / kKeyPanel * kKeyPanel),
        columns((job.width + kLanes - 1) / kLanes * kLanes),
        packed_keys(job.workspace),
        packed_values(packed_keys + keys * job.width),
        scores(packed_values + keys * columns) {}
  int64_t keys, columns;  // padded
  float *packed_keys, *packed_values;
  float* scores;  // [kScoreRows][keys]; the probabilities replace them
};

template <class V>
void pack_head(const AttentionJob& job, const HeadSpace<V>& space) {
  constexpr int kLanes = V::kLanes;
  for (int64_t key = 0; key < space.keys; key += kLanes) {
    float* const panel = space.packed_keys + key / kKeyPanel * kKeyPanel * job.width + key % kKeyPanel;
    for (int64_t i = 0; i < job.width; i += kLanes) {
      typename V::Vector rows[kLanes];
      DITPRESS_EACH(kLanes, j)
        rows[j] = key + j < job.keys ? V::load_first(job.k + (key + j) * job.k_stride + i, job.width - i) : V::zero();
      DITPRESS_END
      V::transpose(rows);
      DITPRESS_EACH(kLanes, j)
        if (i + j < job.width) V::store(panel + (i + j) * kKeyPanel, rows[j]);
      DITPRESS_END
    }
  }
  for (int64_t key = 0; key < job.keys; ++key)
    for (int64_t i = 0; i < space.columns; i += kLanes)
      V::store(space.packed_values + key * space.columns + i, V::load_first(job.v + key * job.v_stride + i, job.width - i));
}

// scores[r][s] of Rows queries from `row` against all keys.
template <class V, int Rows>
DITPRESS_INLINE void score(const AttentionJob& job, const HeadSpace<V>& space, int64_t row) {
  constexpr int kLanes = V::kLanes, kVectors = kKeyPanel / kLanes;
  const float* const q = job.q + row * job.q_stride;
  for (int64_t panel = 0; panel < space.keys; panel += kKeyPanel) {
    const float* k = space.packed_keys + panel * job.width;
    typename V::Vector acc[Rows][kVectors];
    DITPRESS_EACH(Rows, r) DITPRESS_EACH(kVectors, v) acc[r][v] = V::zero(); DITPRESS_END DITPRESS_END
    for (int64_t i = 0; i < job.width; ++i, k += kKeyPanel) {
      typename V::Vector b[kVectors];
      DITPRESS_EACH(kVectors, v) b[v] = V::load(k + kLanes * v); DITPRESS_END
      DITPRESS_EACH(Rows, r)
        const auto a = V::fill(q[r * job.q_stride + i]);
        DITPRESS_EACH(kVectors, v) acc[r][v] = V::fma(a, b[v], acc[r][v]); DITPRESS_END
      DITPRESS_END
    }
    DITPRESS_EACH(Rows, r)
      DITPRESS_EACH(kVectors, v) V::store(space.scores + r * space.keys + panel + kLanes * v, acc[r][v]); DITPRESS_END
    DITPRESS_END
  }
}

// Scores of query t to unnormalised probabilities, in place; returns 1 / their sum.
template <class V>
DITPRESS_INLINE float soften(const AttentionJob& job, float* scores, int64_t t) {
  constexpr int kLanes = V::kLanes;
  constexpr float kLog2e = 1.44269504f;  // everything in powers of two
  const auto scale = V::fill(job.scale * kLog2e), log2e = V::fill(kLog2e);
  auto top = V::fill(-INFINITY);
  for (int64_t s = 0; s < job.keys; s += kLanes) {
    auto x = V::mul(V::load(scores + s), scale);
    const int64_t left = job.keys - s;
    if (job.mask) {
      const float* at = job.mask + t * job.mask_t + s * job.mask_s;
      x = V::fma(job.mask_s ? V::load_first(at, left) : V::fill(*at), log2e, x);
    }
    if (left < kLanes) x = V::keep_first(x, left, -INFINITY);
    V::store(scores + s, x);
    top = V::max(top, x);
  }
  const auto most = V::fill(V::largest(top));
  auto sum = V::zero();
  for (int64_t s = 0; s < job.keys; s += kLanes) {
    const auto p = exp2_of<V>(V::sub(V::load(scores + s), most));
    V::store(scores + s, p);
    sum = V::add(sum, p);
  }
  return 1.0f / V::sum(sum);
}

// y[r] = probabilities x values for `Vectors` vectors of columns from `column`.
template <class V, int Rows, int Vectors>
DITPRESS_INLINE void mix(const AttentionJob& job, const HeadSpace<V>& space, const float* inverse, int64_t row,
                         int64_t column) {
  constexpr int kLanes = V::kLanes;
  typename V::Vector acc[Rows][Vectors];
  DITPRESS_EACH(Rows, r) DITPRESS_EACH(Vectors, v) acc[r][v] = V::zero(); DITPRESS_END DITPRESS_END
  const float* values = space.packed_values + column;
  for (int64_t s = 0; s < job.keys; ++s, values += space.columns) {
    typename V::Vector b[Vectors];
    DITPRESS_EACH(Vectors, v) b[v] = V::load(values + kLanes * v); DITPRESS_END
    DITPRESS_EACH(Rows, r)
      const auto p = V::fill(space.scores[r * space.keys + s]);
      DITPRESS_EACH(Vectors, v) acc[r][v] = V::fma(p, b[v], acc[r][v]); DITPRESS_END
    DITPRESS_END
  }
  DITPRESS_EACH(Rows, r)
    const auto factor = V::fill(inverse[r]);
    DITPRESS_EACH(Vectors, v)
      const int64_t at = column + kLanes * v;
      V::store_first(job.y + (row + r) * job.y_stride + at, V::mul(acc[r][v], factor), job.width - at);
    DITPRESS_END
  DITPRESS_END
}

template <class V, int Rows>
__attribute__((noinline)) void query_tile(const AttentionJob& job, const HeadSpace<V>& space, int64_t row) {
  constexpr int kMixVectors = kKeyPanel / V::kLanes;
  score<V, Rows>(job, space, row);
  float inverse[Rows];
  for (int r = 0; r < Rows; ++r)
    inverse[r] = soften<V>(job, space.scores + r * space.keys, row + r);
  for (int64_t column = 0; column < space.columns; column += kMixVectors * V::kLanes) {
    const int64_t count = (space.columns - column) / V::kLanes;
    DITPRESS_EACH(kMixVectors, i)
      if (count == i + 1 || (i + 1 == kMixVectors && count > kMixVectors))
        mix<V, Rows, i + 1>(job, space, inverse, row, column);
    DITPRESS_END
  }
}

template <class V>
DITPRESS_INLINE void attend(const AttentionJob& job) {
  const HeadSpace<V> space(job);
  pack_head<V>(job, space);
  constexpr int kRows = V::kScoreRows;
  const int64_t tiles = (job.queries + kRows - 1) / kRows;
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = tile_row(job.queries, tiles, tile), rows = tile_row(job.queries, tiles, tile + 1) - row;
    DITPRESS_EACH(kRows, i)
      if (rows == i + 1) query_tile<V, i + 1>(job, space, row);
    DITPRESS_END
  }
}

}  // namespace
}  // namespace ditpress
