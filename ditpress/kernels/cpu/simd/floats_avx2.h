// Eight floats of AVX2 with FMA, under the names that the templates of this folder use.
#pragma once

#include <immintrin.h>

#include <cstdint>

#include "../unroll.h"

namespace ditpress {
namespace {

struct Floats {
  using Vector = __m256;
  using Ints = __m256i;
  using Mask = __m256;
  static constexpr int kLanes = 8;
  static constexpr int kScoreRows = 6;  // attention: 6 x 2 accumulators, 2 vectors of keys and a query

  static DITPRESS_INLINE Vector zero() { return _mm256_setzero_ps(); }
  static DITPRESS_INLINE Vector fill(float x) { return _mm256_set1_ps(x); }
  static DITPRESS_INLINE Vector load(const float* p) { return _mm256_loadu_ps(p); }
  static DITPRESS_INLINE void store(float* p, Vector v) { _mm256_storeu_ps(p, v); }

  // The first `count` of 8 lanes (any number): the others read as zero and are not written.
  static DITPRESS_INLINE __m256i lanes(int64_t count) {
    const int held = count >= 8 ? 8 : count <= 0 ? 0 : static_cast<int>(count);
    return _mm256_cmpgt_epi32(_mm256_set1_epi32(held), _mm256_setr_epi32(0, 1, 2, 3, 4, 5, 6, 7));
  }
  static DITPRESS_INLINE Vector load_first(const float* p, int64_t count) {
    return count >= 8 ? load(p) : _mm256_maskload_ps(p, lanes(count));
  }
  static DITPRESS_INLINE void store_first(float* p, Vector v, int64_t count) {
    if (count >= 8) store(p, v);
    else _mm256_maskstore_ps(p, lanes(count), v);
  }
  static DITPRESS_INLINE Vector keep_first(Vector v, int64_t count, float other) {
    return _mm256_blendv_ps(fill(other), v, _mm256_castsi256_ps(lanes(count)));
  }

  static DITPRESS_INLINE Vector add(Vector a, Vector b) { return _mm256_add_ps(a, b); }
  static DITPRESS_INLINE Vector sub(Vector a, Vector b) { return _mm256_sub_ps(a, b); }
  static DITPRESS_INLINE Vector mul(Vector a, Vector b) { return _mm256_mul_ps(a, b); }
  static DITPRESS_INLINE Vector div(Vector a, Vector b) { return _mm256_div_ps(a, b); }
  static DITPRESS_INLINE Vector fma(Vector a, Vector b, Vector c) { return _mm256_fmadd_ps(a, b, c); }
  // NaN where b is NaN.
  static DITPRESS_INLINE Vector max(Vector a, Vector b) { return _mm256_max_ps(a, b); }
  static DITPRESS_INLINE Vector min(Vector a, Vector b) { return _mm256_min_ps(a, b); }
  static DITPRESS_INLINE Vector round(Vector a) {
    return _mm256_round_ps(a, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
  }
  static DITPRESS_INLINE Vector floor(Vector a) { return _mm256_floor_ps(a); }
  // 2**e for whole e of -126 ... 127, and 0 for -127.
  static DITPRESS_INLINE Vector power_of_two(Vector e) {
    const __m256i biased = _mm256_add_epi32(_mm256_cvtps_epi32(e), _mm256_set1_epi32(127));
    return _mm256_castsi256_ps(_mm256_slli_epi32(biased, 23));
  }

  static DITPRESS_INLINE float sum(Vector v) {
    __m128 half = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_add_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_add_ss(half, _mm_movehdup_ps(half)));
  }
  static DITPRESS_INLINE float largest(Vector v) {
    __m128 half = _mm_max_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
    half = _mm_max_ps(half, _mm_movehl_ps(half, half));
    return _mm_cvtss_f32(_mm_max_ss(half, _mm_movehdup_ps(half)));
  }

  // Where a < b, which no NaN is.
  static DITPRESS_INLINE Mask less(Vector a, Vector b) { return _mm256_cmp_ps(a, b, _CMP_LT_OQ); }
  static DITPRESS_INLINE Vector select(Mask mask, Vector yes, Vector no) { return _mm256_blendv_ps(no, yes, mask); }
  static DITPRESS_INLINE Ints select(Mask mask, Ints yes, Ints no) {
    return _mm256_castps_si256(select(mask, _mm256_castsi256_ps(yes), _mm256_castsi256_ps(no)));
  }

  static DITPRESS_INLINE Ints fill_ints(int32_t x) { return _mm256_set1_epi32(x); }
  static DITPRESS_INLINE void store_ints(int32_t* p, Ints v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
  static DITPRESS_INLINE Ints to_ints(Vector v) { return _mm256_cvttps_epi32(v); }
  static DITPRESS_INLINE Vector lookup(const float* table, Ints index) {
    return _mm256_i32gather_ps(table, index, sizeof *table);
  }
  static DITPRESS_INLINE Vector from_ints(Ints v) { return _mm256_cvtepi32_ps(v); }
  static DITPRESS_INLINE Vector from_bytes(const int8_t* p) {
    return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64(reinterpret_cast<const __m128i*>(p))));
  }

  static DITPRESS_INLINE void transpose(Vector (&r)[8]) {
    __m256 t[8], u[8];
    DITPRESS_EACH(4, i)
      t[2 * i] = _mm256_unpacklo_ps(r[2 * i], r[2 * i + 1]);
      t[2 * i + 1] = _mm256_unpackhi_ps(r[2 * i], r[2 * i + 1]);
    DITPRESS_END
    DITPRESS_EACH(2, i)
      u[4 * i] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0x44);
      u[4 * i + 1] = _mm256_shuffle_ps(t[4 * i], t[4 * i + 2], 0xee);
      u[4 * i + 2] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0x44);
      u[4 * i + 3] = _mm256_shuffle_ps(t[4 * i + 1], t[4 * i + 3], 0xee);
    DITPRESS_END
    DITPRESS_EACH(4, i)
      r[i] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x20);
      r[i + 4] = _mm256_permute2f128_ps(u[i], u[i + 4], 0x31);
    DITPRESS_END
  }
};

}  // namespace
}  // namespace ditpress
