// Attention of one head: softmax(scale * q k^T + mask) v, keys and values packed once, queries in tiles of a few rows
// whose scores stay in the first-level cache. Written once for two kinds of products, which `Dot` tells apart: float32,
// and pairs of bfloat16 that vdpbf16ps multiplies and adds in float32.
//
// Packed keys:   [keys / 64][steps over the width][64 keys] dwords, a dword holding Dot::kPer values of one key
// Packed values: [steps over the keys][columns] dwords, a dword holding the values of Dot::kPer keys
#pragma once

#include <cmath>
#include <cstring>

#include "fetch.h"

namespace ditpress {
namespace {

constexpr int kKeyPanel = 64;
constexpr int kQueryRows = 5;   // with kMixVectors: 25 accumulators, 5 vectors of values and a probability
constexpr int kMixVectors = 5;

constexpr int64_t round_up(int64_t value, int64_t to) { return (value + to - 1) / to * to; }

// 16 x 16 dwords.
DITPRESS_INLINE void transpose_16(__m512i (&r)[16]) {
  __m512i t[16];
  DITPRESS_EACH(8, i)
    t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
    t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
  DITPRESS_END
  DITPRESS_EACH(4, i)
    r[4 * i] = _mm512_unpacklo_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 1] = _mm512_unpackhi_epi64(t[4 * i], t[4 * i + 2]);
    r[4 * i + 2] = _mm512_unpacklo_epi64(t[4 * i + 1], t[4 * i + 3]);
    r[4 * i + 3] = _mm512_unpackhi_epi64(t[4 * i + 1], t[4 * i + 3]);
  DITPRESS_END
  DITPRESS_EACH(4, i)
    t[i] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0x88);
    t[i + 4] = _mm512_shuffle_i32x4(r[i], r[i + 4], 0xdd);
    t[i + 8] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0x88);
    t[i + 12] = _mm512_shuffle_i32x4(r[i + 8], r[i + 12], 0xdd);
  DITPRESS_END
  DITPRESS_EACH(4, i)
    r[i] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0x88);
    r[i + 4] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0x88);
    r[i + 8] = _mm512_shuffle_i32x4(t[i], t[i + 8], 0xdd);
    r[i + 12] = _mm512_shuffle_i32x4(t[i + 4], t[i + 12], 0xdd);
  DITPRESS_END
}

// Memory of one head, part of the caller's workspace.
template <class Dot>
struct HeadSpace {
  HeadSpace(const AttentionJob& job)
      : keys(round_up(job.keys, kKeyPanel)),
        steps((job.width + Dot::kPer - 1) / Dot::kPer),
        vectors((job.width + 15) / 16) {
    packed_keys = reinterpret_cast<uint32_t*>(job.workspace);
    packed_values = packed_keys + keys * steps;
    queries = packed_values + keys / Dot::kPer * vectors * 16;
    scores = reinterpret_cast<float*>(queries + kQueryRows * round_up(steps, 16));
  }
  int64_t keys, steps, vectors;  // padded keys, dwords per query, vectors of a row of values
  uint32_t *packed_keys, *packed_values, *queries;
  float* scores;  // [kQueryRows][keys]; the probabilities replace them
};

template <class Dot>
void pack_keys(const AttentionJob& job, const HeadSpace<Dot>& space) {
  for (int64_t key = 0; key < space.keys; key += 16) {
    uint32_t* const panel = space.packed_keys + key / kKeyPanel * kKeyPanel * space.steps + key % kKeyPanel;
    for (int64_t step = 0; step < space.steps; step += 16) {
      __m512i rows[16];
      DITPRESS_EACH(16, i)
        rows[i] = key + i < job.keys
                      ? Dot::dwords(job.k + (key + i) * job.k_stride + step * Dot::kPer, job.width - step * Dot::kPer)
                      : _mm512_setzero_si512();
      DITPRESS_END
      transpose_16(rows);
      DITPRESS_EACH(16, i)
        if (step + i < space.steps) _mm512_storeu_si512(panel + (step + i) * kKeyPanel, rows[i]);
      DITPRESS_END
    }
  }
}

template <class Dot>
void pack_values(const AttentionJob& job, const HeadSpace<Dot>& space) {
  for (int64_t step = 0; step < space.keys / Dot::kPer; ++step)
    for (int64_t v = 0; v < space.vectors; ++v) {
      const __mmask16 mask = first_lanes(job.width - 16 * v);
      const float* at = job.v + step * Dot::kPer * job.v_stride + 16 * v;
      const int64_t left = job.keys - step * Dot::kPer;
      _mm512_storeu_si512(space.packed_values + (step * space.vectors + v) * 16,
                          Dot::across(at, job.v_stride, left, mask));
    }
}

// scores[r][s] of Rows queries against all keys, padding among them; top[r] gathers the largest.
template <class Dot, int Rows>
DITPRESS_INLINE void score(const HeadSpace<Dot>& space, __m512 (&top)[kQueryRows]) {
  constexpr int kVectors = kKeyPanel / 16;
  const int64_t query_stride = round_up(space.steps, 16);
  DITPRESS_EACH(Rows, r) top[r] = _mm512_set1_ps(-INFINITY); DITPRESS_END
  for (int64_t panel = 0; panel < space.keys; panel += kKeyPanel) {
    const uint32_t* k = space.packed_keys + panel * space.steps;
    __m512 acc[Rows][kVectors];
    DITPRESS_EACH(Rows, r) DITPRESS_EACH(kVectors, v) acc[r][v] = _mm512_setzero_ps(); DITPRESS_END DITPRESS_END
    for (int64_t step = 0; step < space.steps; ++step, k += kKeyPanel) {
      __m512i b[kVectors];
      DITPRESS_EACH(kVectors, v) b[v] = _mm512_loadu_si512(k + 16 * v); DITPRESS_END
      DITPRESS_EACH(Rows, r)
        const __m512i a = _mm512_set1_epi32(static_cast<int>(space.queries[r * query_stride + step]));
        DITPRESS_EACH(kVectors, v) acc[r][v] = Dot::add(acc[r][v], a, b[v]); DITPRESS_END
      DITPRESS_END
    }
    DITPRESS_EACH(Rows, r)
      DITPRESS_EACH(kVectors, v)
        _mm512_storeu_ps(space.scores + r * space.keys + panel + 16 * v, acc[r][v]);
        top[r] = _mm512_max_ps(top[r], acc[r][v]);
      DITPRESS_END
    DITPRESS_END
  }
}

// What stands for minus infinity, in powers of two: far enough for 2**x to be zero, and finite, so that differences are.
constexpr float kNever = -1e30f;

// Scores of query t to unnormalised probabilities, in place; returns 1 / their sum. `top`: see score.
template <class Dot>
DITPRESS_INLINE float soften(const AttentionJob& job, float* scores, int64_t keys, int64_t t, __m512 top) {
  constexpr float kLog2e = 1.44269504f;
  __m512 factor = _mm512_set1_ps(job.scale * kLog2e);  // everything in powers of two
  float largest;
  if (!job.mask && keys == job.keys && job.scale >= 0.0f) {
    largest = _mm512_reduce_max_ps(top) * (job.scale * kLog2e);
  } else {
    const __m512 never = _mm512_set1_ps(kNever);
    top = never;
    for (int64_t s = 0; s < keys; s += 16) {
      const __mmask16 mask = first_lanes(job.keys - s);
      __m512 x = _mm512_mul_ps(_mm512_loadu_ps(scores + s), factor);
      if (job.mask) {
        const float* at = job.mask + t * job.mask_t + s * job.mask_s;
        const __m512 bias = job.mask_s ? _mm512_maskz_loadu_ps(mask, at) : _mm512_set1_ps(*at);
        x = _mm512_fmadd_ps(bias, _mm512_set1_ps(kLog2e), x);
      }
      x = _mm512_mask_max_ps(never, mask, never, x);
      _mm512_storeu_ps(scores + s, x);
      top = _mm512_max_ps(top, x);
    }
    factor = _mm512_set1_ps(1.0f);
    largest = _mm512_reduce_max_ps(top);
    if (largest == kNever) largest = NAN;  // nothing to attend to
  }
  const __m512 most = _mm512_set1_ps(largest);
  __m512 sum[2] = {_mm512_setzero_ps(), _mm512_setzero_ps()};
  for (int64_t s = 0; s < keys; s += 32) {
    __m512 p[2];
    DITPRESS_EACH(2, i)
      p[i] = Dot::exp2(_mm512_fmsub_ps(_mm512_loadu_ps(scores + s + 16 * i), factor, most));
      sum[i] = _mm512_add_ps(sum[i], p[i]);
    DITPRESS_END
    Dot::store_probabilities(scores, s, p[0], p[1]);
  }
  return 1.0f / _mm512_reduce_add_ps(_mm512_add_ps(sum[0], sum[1]));
}

// y[r] = probabilities x values for `Vectors` vectors of columns from `first`.
template <class Dot, int Rows, int Vectors>
DITPRESS_INLINE void mix(const AttentionJob& job, const HeadSpace<Dot>& space, const float (&inverse)[kQueryRows],
                         int64_t row, int64_t first, Fetch& fetch) {
  __m512 acc[Rows][Vectors];
  DITPRESS_EACH(Rows, r) DITPRESS_EACH(Vectors, v) acc[r][v] = _mm512_setzero_ps(); DITPRESS_END DITPRESS_END
  const uint32_t* values = space.packed_values + first * 16;
  const uint32_t* p = reinterpret_cast<const uint32_t*>(space.scores);
  for (int64_t step = 0; step < space.keys / Dot::kPer; ++step, values += space.vectors * 16) {
    fetch.one();
    __m512i b[Vectors];
    DITPRESS_EACH(Vectors, v) b[v] = _mm512_loadu_si512(values + 16 * v); DITPRESS_END
    DITPRESS_EACH(Rows, r)
      const __m512i a = _mm512_set1_epi32(static_cast<int>(p[r * space.keys + step]));
      DITPRESS_EACH(Vectors, v) acc[r][v] = Dot::add(acc[r][v], a, b[v]); DITPRESS_END
    DITPRESS_END
  }
  DITPRESS_EACH(Rows, r)
    const __m512 factor = _mm512_set1_ps(inverse[r]);
    DITPRESS_EACH(Vectors, v)
      const __mmask16 mask = first_lanes(job.width - 16 * (first + v));
      _mm512_mask_storeu_ps(job.y + (row + r) * job.y_stride + 16 * (first + v), mask,
                            _mm512_mul_ps(acc[r][v], factor));
    DITPRESS_END
  DITPRESS_END
}

template <class Dot, int Rows>
void query_tile(const AttentionJob& job, const HeadSpace<Dot>& space, int64_t row, Fetch& fetch) {
  const int64_t query_stride = round_up(space.steps, 16);
  for (int r = 0; r < Rows; ++r)
    for (int64_t step = 0; step < space.steps; step += 16)
      _mm512_storeu_si512(space.queries + r * query_stride + step,
                          Dot::dwords(job.q + (row + r) * job.q_stride + step * Dot::kPer,
                                      job.width - step * Dot::kPer));
  __m512 top[kQueryRows];
  score<Dot, Rows>(space, top);
  float inverse[kQueryRows];
  for (int r = 0; r < Rows; ++r)
    inverse[r] = soften<Dot>(job, space.scores + r * space.keys, space.keys, row + r, top[r]);
  const int64_t parts = (space.vectors + kMixVectors - 1) / kMixVectors;
  for (int64_t part = 0; part < parts; ++part) {
    const int64_t first = tile_row(space.vectors, parts, part);
    const int64_t count = tile_row(space.vectors, parts, part + 1) - first;
    DITPRESS_EACH(kMixVectors, i)
      if (count == i + 1) mix<Dot, Rows, i + 1>(job, space, inverse, row, first, fetch);
    DITPRESS_END
  }
}

// Rows [first, last) of `width` values. They lie on a page each: nothing else fetches them.
inline void fetch_rows(const float* x, int64_t stride, int64_t first, int64_t last, int64_t width, Fetch& fetch) {
  for (int64_t r = first; x && r < last; ++r) fetch.add(x + r * stride, width);
}

template <class Dot>
void attend(const AttentionJob& job) {
  const HeadSpace<Dot> space(job);
  pack_keys<Dot>(job, space);
  pack_values<Dot>(job, space);
  const int64_t tiles = (job.queries + kQueryRows - 1) / kQueryRows;
  Fetch fetch(job.workspace);
  for (int64_t tile = 0; tile < tiles; ++tile) {
    const int64_t row = tile_row(job.queries, tiles, tile), rows = tile_row(job.queries, tiles, tile + 1) - row;
    const int64_t key = tile_row(job.keys, tiles, tile), last_key = tile_row(job.keys, tiles, tile + 1);
    fetch.clear();
    fetch_rows(job.y, job.y_stride, row, row + rows, job.width, fetch);
    fetch_rows(job.next_q, job.q_stride, row, row + rows, job.width, fetch);
    fetch_rows(job.next_k, job.k_stride, key, last_key, job.width, fetch);
    fetch_rows(job.next_v, job.v_stride, key, last_key, job.width, fetch);
    fetch.start();
    DITPRESS_EACH(kQueryRows, i)
      if (rows == i + 1) query_tile<Dot, i + 1>(job, space, row, fetch);
    DITPRESS_END
  }
}

}  // namespace
}  // namespace ditpress
