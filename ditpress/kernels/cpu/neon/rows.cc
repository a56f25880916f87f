// Rows of activations: layer norm with modulation, and rounding to int8; half precision to float.
#include "../simd/floats_neon.h"
#include "../simd/rows.h"

#include "../half.h"
#include "../low_bit_rows.h"
#include "common.h"

namespace ditpress {
namespace {

DITPRESS_INLINE uint32x4_t magnitude_bits(float32x4_t x) {
  return vandq_u32(vreinterpretq_u32_f32(x), vdupq_n_u32(0x7fffffffu));
}

// Bits of the largest magnitude. As integers, NaN > infinity > every finite number.
DITPRESS_INLINE uint32_t largest_bits(const float* x, int64_t k) {
  uint32x4_t top[4];
  DITPRESS_EACH(4, j) top[j] = vdupq_n_u32(0); DITPRESS_END
  int64_t i = 0;
  for (; i + 16 <= k; i += 16)
    DITPRESS_EACH(4, j) top[j] = vmaxq_u32(top[j], magnitude_bits(Floats::load(x + i + 4 * j))); DITPRESS_END
  for (; i < k; i += 4) top[0] = vmaxq_u32(top[0], magnitude_bits(Floats::load_first(x + i, k - i)));
  return vmaxvq_u32(vmaxq_u32(vmaxq_u32(top[0], top[1]), vmaxq_u32(top[2], top[3])));
}

// One chunk, rounded half to even; values are within int8.
DITPRESS_INLINE int8x16_t round_chunk(const float* x, float factor) {
  const auto eight = [&](const float* at) __attribute__((always_inline)) {
    const int32x4_t low = vcvtnq_s32_f32(vmulq_n_f32(Floats::load(at), factor));
    const int32x4_t high = vcvtnq_s32_f32(vmulq_n_f32(Floats::load(at + 4), factor));
    return vmovn_s16(vcombine_s16(vmovn_s32(low), vmovn_s32(high)));
  };
  return vcombine_s8(eight(x), eight(x + 8));
}

}  // namespace

void neon::normalize_row(const NormJob& job) { normalize<Floats>(job); }
void neon::residual_row(const ResidualJob& job) { residual<Floats>(job); }
void neon::quantize_groups(const RowJob& job, Activation activation) { quantize_groups_generic(job, activation); }
void neon::quantize_fp8(const RowJob& job) { quantize_fp8_generic(job); }

// Signed layout: no compensation, sums start at zero.
void neon::quantize_row(const RowJob& job) {
  float factor;
  row_factors(largest_bits(job.x, job.groups * job.group), job.scale, &factor);
  int8_t* q = job.q;
  for (int64_t g = 0; g < job.groups; ++g) {
    const float* const x = job.x + g * job.group;
    job.start[g * job.start_stride] = 0;
    for (int64_t at = 0; at < job.padded_group; at += kChunk, q += job.q_stride) {
      const int64_t left = job.group - at;
      if (factor == 0.0f) {  // keeps infinity * 0 out
        vst1q_s8(q, vdupq_n_s8(0));
      } else if (left >= kChunk) {
        vst1q_s8(q, round_chunk(x + at, factor));
      } else {
        float held[kChunk] = {};
        for (int64_t i = 0; i < left; ++i) held[i] = x[at + i];
        vst1q_s8(q, round_chunk(held, factor));
      }
    }
  }
}

void neon::widen_half(const uint16_t* half, float* out, int64_t count) {
  int64_t i = 0;
  for (; i + 4 <= count; i += 4)
    vst1q_f32(out + i, vcvt_f32_f16(vreinterpret_f16_u16(vld1_u16(half + i))));
  for (; i < count; ++i) out[i] = half_to_float(half[i]);
}

}  // namespace ditpress
