// Panels of 16 columns against row tiles of int8 activations. Dot is what an instruction set brings:
//   Floats              its vectors of float
//   kRows               rows of the largest tile
//   multiply<Rows>(a, w, chunks, acc)   acc += activations x weights over `chunks` chunks of 16 k
//   first(start)        the first value of an accumulator
#pragma once

#include "epilogue.h"

namespace ditpress {
namespace {

constexpr int kColumns = 16;
constexpr int kPrefetchLine = 64;

// Grouped: a scale for every group of weights. Scaled: and one for every group of a row.
template <class Dot, int Rows, bool Grouped, bool Scaled>
__attribute__((noinline)) void int8_tile(const Int8Job& job, int64_t row) {
  using V = typename Dot::Floats;
  constexpr int kLanes = V::kLanes, kVectors = kColumns / kLanes;
  const int64_t chunks = job.group_chunks;
  const int8_t* a = job.activations + row * job.groups * chunks * kChunk;
  const uint8_t* w = job.weights;
  const int32_t* start = job.start + row;
  const float* scale = job.scale;
  const float* row_scale = job.row_scale + row;
  typename V::Vector f[Rows][kVectors];
  if constexpr (Grouped) {
    DITPRESS_EACH(Rows, r) DITPRESS_EACH(kVectors, v) f[r][v] = V::zero(); DITPRESS_END DITPRESS_END
  }
  int64_t g = job.groups;
  do {
    typename V::Ints acc[Rows][kVectors];
    DITPRESS_EACH(Rows, r)
      const auto first = Dot::first(start + r);
      DITPRESS_EACH(kVectors, v) acc[r][v] = first; DITPRESS_END
    DITPRESS_END
    Dot::template multiply<Rows>(a, w, chunks, acc);
    DITPRESS_EACH(kVectors, v)
      const auto s = V::load(scale + kLanes * v);
      DITPRESS_EACH(Rows, r)
        auto sum = V::from_ints(acc[r][v]);
        if constexpr (Scaled) sum = V::mul(sum, V::fill(row_scale[r]));
        if constexpr (Grouped) f[r][v] = V::fma(sum, s, f[r][v]);
        else f[r][v] = V::mul(sum, s);
      DITPRESS_END
    DITPRESS_END
    a += chunks * Rows * kChunk;
    w += chunks * kChunk * kColumns;
    scale += kColumns;
    start += job.m;
    if constexpr (Scaled) row_scale += job.m;
  } while (--g);
  float y[Rows * kColumns];
  DITPRESS_EACH(kVectors, v)
    const auto bias = V::load(job.bias + kLanes * v);
    DITPRESS_EACH(Rows, r)
      if constexpr (Scaled) V::store(y + r * kColumns + kLanes * v, V::add(f[r][v], bias));
      else V::store(y + r * kColumns + kLanes * v, V::fma(f[r][v], V::fill(row_scale[r]), bias));
    DITPRESS_END
  DITPRESS_END
  store_tile<V>({job.epilogue, job.y, job.y_stride, job.columns, row}, y, Rows);
}

template <class Dot, bool Grouped, bool Scaled>
DITPRESS_INLINE void int8_tiles(const Int8Job& job) {
  // The codes of the next panel come nearer a little with every tile.
  const int64_t count = job.last_tile - job.first_tile;
  const int64_t lines = job.next ? (job.next_bytes + kPrefetchLine - 1) / kPrefetchLine : 0;
  for (int64_t t = job.first_tile; t < job.last_tile; ++t) {
    const int64_t done = t - job.first_tile;
    for (int64_t line = tile_row(lines, count, done); line < tile_row(lines, count, done + 1); ++line)
      __builtin_prefetch(job.next + line * kPrefetchLine, 0, 2);
    const int64_t row = tile_row(job, t), rows = tile_row(job, t + 1) - row;
    DITPRESS_EACH(Dot::kRows, i)
      if (rows == i + 1) int8_tile<Dot, i + 1, Grouped, Scaled>(job, row);
    DITPRESS_END
  }
}

template <class Dot>
DITPRESS_INLINE void int8_panels(const Int8Job& job) {
  if (job.scaled) int8_tiles<Dot, true, true>(job);
  else if (job.groups == 1) int8_tiles<Dot, false, false>(job);
  else int8_tiles<Dot, true, false>(job);
}

}  // namespace
}  // namespace ditpress
