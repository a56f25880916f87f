// Codes of a panel to bytes, by byte tables where these have few entries.
#include <arm_neon.h>

#include "../decode.h"
#include "../unroll.h"
#include "common.h"

namespace ditpress {
namespace {

using neon::kVector;

// Group scales multiplied into the bytes of a quad.
class Folding {
 public:
  explicit Folding(const int16_t* fold) {
    DITPRESS_EACH(4, v)
      const int16x4_t factors = vld1_s16(fold + 4 * v);
      // a factor for every byte of its column
      low_[v] = vcombine_s16(vdup_lane_s16(factors, 0), vdup_lane_s16(factors, 1));
      high_[v] = vcombine_s16(vdup_lane_s16(factors, 2), vdup_lane_s16(factors, 3));
    DITPRESS_END
  }
  // Vector V of a quad.
  template <int V>
  DITPRESS_INLINE uint8x16_t apply(uint8x16_t bytes) const {
    const int8x16_t values = vreinterpretq_s8_u8(bytes);
    // twice value * 256 * fold, rounded by 2**16: the high half
    const int16x8_t low = vqrdmulhq_s16(vshll_n_s8(vget_low_s8(values), 8), low_[V]);
    const int16x8_t high = vqrdmulhq_s16(vshll_n_s8(vget_high_s8(values), 8), high_[V]);
    return vreinterpretq_u8_s8(vcombine_s8(vqmovn_s16(low), vqmovn_s16(high)));
  }

 private:
  int16x8_t low_[4], high_[4];
};

struct Unfolded {
  explicit Unfolded(const int16_t*) {}
  template <int V>
  DITPRESS_INLINE uint8x16_t apply(uint8x16_t bytes) const { return bytes; }
};

template <class Fold>
DITPRESS_INLINE void decode_nibbles(const DecodeJob& job) {
  const Fold fold(job.fold);
  const uint8x16_t table = vld1q_u8(job.table);
  for (int64_t v = 0; v < job.vectors; v += 4)
    DITPRESS_EACH(2, i)
      const uint8x16_t codes = vld1q_u8(job.codes + (v / 2 + i) * kVector);
      const uint8x16_t low = vqtbl1q_u8(table, vandq_u8(codes, vdupq_n_u8(15)));
      const uint8x16_t high = vqtbl1q_u8(table, vshrq_n_u8(codes, 4));
      vst1q_u8(job.bytes + (v + 2 * i) * kVector, fold.template apply<2 * i>(low));
      vst1q_u8(job.bytes + (v + 2 * i + 1) * kVector, fold.template apply<2 * i + 1>(high));
    DITPRESS_END
}

template <class Fold>
DITPRESS_INLINE void decode_pairs(const DecodeJob& job) {
  const Fold fold(job.fold);
  const uint8x16_t table = vld1q_u8(job.table);
  for (int64_t v = 0; v < job.vectors; v += 4) {
    const uint8x16_t codes = vld1q_u8(job.codes + v / 4 * kVector);
    DITPRESS_EACH(4, i)
      const uint8x16_t index = vandq_u8(vshlq_u8(codes, vdupq_n_s8(-2 * i)), vdupq_n_u8(3));
      vst1q_u8(job.bytes + (v + i) * kVector, fold.template apply<i>(vqtbl1q_u8(table, index)));
    DITPRESS_END
  }
}

// A third of every byte, rounded down.
DITPRESS_INLINE uint8x16_t third(uint8x16_t bytes) {
  const uint8x8_t reciprocal = vdup_n_u8(171);  // 2**9 / 3, rounded up
  const uint8x8_t low = vshrn_n_u16(vmull_u8(vget_low_u8(bytes), reciprocal), 8);
  const uint8x8_t high = vshrn_n_u16(vmull_u8(vget_high_u8(bytes), reciprocal), 8);
  return vshrq_n_u8(vcombine_u8(low, high), 1);
}

void decode_trits(const DecodeJob& job) {
  const uint8x16_t table = vld1q_u8(job.table);  // of the first digit: byte d stands for digit d
  for (int64_t v = 0; v < job.vectors; v += 5) {
    uint8x16_t left = vld1q_u8(job.codes + v / 5 * kVector);
    DITPRESS_EACH(5, i)
      const uint8x16_t quotient = third(left);
      const uint8x16_t digit = vmlsq_u8(left, quotient, vdupq_n_u8(3));
      vst1q_u8(job.bytes + (v + i) * kVector, vqtbl1q_u8(table, digit));
      left = quotient;
    DITPRESS_END
  }
}

}  // namespace

void neon::decode(const DecodeJob& job) {
  switch (job.coding) {
    case Coding::kNibbles: return job.fold ? decode_nibbles<Folding>(job) : decode_nibbles<Unfolded>(job);
    case Coding::kPairs: return job.fold ? decode_pairs<Folding>(job) : decode_pairs<Unfolded>(job);
    case Coding::kTrits: decode_trits(job); break;
    default: decode_generic(job, kVector); break;
  }
  if (!job.fold) return;
  const Folding fold(job.fold);
  for (int64_t v = 0; v < job.vectors; v += 4)
    DITPRESS_EACH(4, i)
      uint8_t* const at = job.bytes + (v + i) * kVector;
      vst1q_u8(at, fold.template apply<i>(vld1q_u8(at)));
    DITPRESS_END
}

}  // namespace ditpress
