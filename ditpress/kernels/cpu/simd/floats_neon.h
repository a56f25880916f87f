// Four floats of NEON, under the names that the templates of this folder use.
#pragma once

#include <arm_neon.h>

#include <cstdint>
#include <cstring>

#include "../unroll.h"

namespace ditpress {
namespace {

struct Floats {
  using Vector = float32x4_t;
  using Ints = int32x4_t;
  using Mask = uint32x4_t;
  static constexpr int kLanes = 4;
  static constexpr int kScoreRows = 5;  // attention: 5 x 4 accumulators, 4 vectors of keys and a query

  static DITPRESS_INLINE Vector zero() { return vdupq_n_f32(0.0f); }
  static DITPRESS_INLINE Vector fill(float x) { return vdupq_n_f32(x); }
  static DITPRESS_INLINE Vector load(const float* p) { return vld1q_f32(p); }
  static DITPRESS_INLINE void store(float* p, Vector v) { vst1q_f32(p, v); }

  // The first `count` of 4 lanes (any number): the others read as zero and are not written.
  static DITPRESS_INLINE Vector load_first(const float* p, int64_t count) {
    if (count >= 4) return load(p);
    float held[4] = {};
    for (int64_t i = 0; i < count; ++i) held[i] = p[i];
    return vld1q_f32(held);
  }
  static DITPRESS_INLINE void store_first(float* p, Vector v, int64_t count) {
    if (count >= 4) return store(p, v);
    float held[4];
    vst1q_f32(held, v);
    for (int64_t i = 0; i < count; ++i) p[i] = held[i];
  }
  static DITPRESS_INLINE Vector keep_first(Vector v, int64_t count, float other) {
    const int held = count >= 4 ? 4 : count <= 0 ? 0 : static_cast<int>(count);
    const int32_t place[4] = {0, 1, 2, 3};
    return vbslq_f32(vcltq_s32(vld1q_s32(place), vdupq_n_s32(held)), v, fill(other));
  }

  static DITPRESS_INLINE Vector add(Vector a, Vector b) { return vaddq_f32(a, b); }
  static DITPRESS_INLINE Vector sub(Vector a, Vector b) { return vsubq_f32(a, b); }
  static DITPRESS_INLINE Vector mul(Vector a, Vector b) { return vmulq_f32(a, b); }
  static DITPRESS_INLINE Vector div(Vector a, Vector b) { return vdivq_f32(a, b); }
  static DITPRESS_INLINE Vector fma(Vector a, Vector b, Vector c) { return vfmaq_f32(c, a, b); }
  // NaN where b is NaN.
  static DITPRESS_INLINE Vector max(Vector a, Vector b) { return vmaxq_f32(a, b); }
  static DITPRESS_INLINE Vector min(Vector a, Vector b) { return vminq_f32(a, b); }
  static DITPRESS_INLINE Vector round(Vector a) { return vrndnq_f32(a); }
  static DITPRESS_INLINE Vector floor(Vector a) { return vrndmq_f32(a); }
  // 2**e for whole e of -126 ... 127, and 0 for -127.
  static DITPRESS_INLINE Vector power_of_two(Vector e) {
    const int32x4_t biased = vaddq_s32(vcvtq_s32_f32(e), vdupq_n_s32(127));
    return vreinterpretq_f32_s32(vshlq_n_s32(biased, 23));
  }

  static DITPRESS_INLINE float sum(Vector v) { return vaddvq_f32(v); }
  static DITPRESS_INLINE float largest(Vector v) { return vmaxvq_f32(v); }

  // Where a < b, which no NaN is.
  static DITPRESS_INLINE Mask less(Vector a, Vector b) { return vcltq_f32(a, b); }
  static DITPRESS_INLINE Vector select(Mask mask, Vector yes, Vector no) { return vbslq_f32(mask, yes, no); }
  static DITPRESS_INLINE Ints select(Mask mask, Ints yes, Ints no) { return vbslq_s32(mask, yes, no); }

  static DITPRESS_INLINE Ints fill_ints(int32_t x) { return vdupq_n_s32(x); }
  static DITPRESS_INLINE void store_ints(int32_t* p, Ints v) { vst1q_s32(p, v); }
  static DITPRESS_INLINE Ints to_ints(Vector v) { return vcvtq_s32_f32(v); }
  static DITPRESS_INLINE Vector lookup(const float* table, Ints index) {
    const float held[4] = {table[vgetq_lane_s32(index, 0)], table[vgetq_lane_s32(index, 1)],
                           table[vgetq_lane_s32(index, 2)], table[vgetq_lane_s32(index, 3)]};
    return vld1q_f32(held);
  }
  static DITPRESS_INLINE Vector from_ints(Ints v) { return vcvtq_f32_s32(v); }
  static DITPRESS_INLINE Vector from_bytes(const int8_t* p) {
    int32_t four;
    std::memcpy(&four, p, sizeof four);
    const int8x8_t bytes = vreinterpret_s8_s32(vdup_n_s32(four));
    return vcvtq_f32_s32(vmovl_s16(vget_low_s16(vmovl_s8(bytes))));
  }

  static DITPRESS_INLINE void transpose(Vector (&r)[4]) {
    const float32x4x2_t low = vtrnq_f32(r[0], r[1]), high = vtrnq_f32(r[2], r[3]);
    r[0] = vcombine_f32(vget_low_f32(low.val[0]), vget_low_f32(high.val[0]));
    r[1] = vcombine_f32(vget_low_f32(low.val[1]), vget_low_f32(high.val[1]));
    r[2] = vcombine_f32(vget_high_f32(low.val[0]), vget_high_f32(high.val[0]));
    r[3] = vcombine_f32(vget_high_f32(low.val[1]), vget_high_f32(high.val[1]));
  }
};

}  // namespace
}  // namespace ditpress
