// Rows of activations to 4 bits and to E4M3: low_bit_rows.h in vectors of 16.
#include "../low_bit_rows.h"

#include <type_traits>

#include "common.h"

namespace ditpress {
namespace {

DITPRESS_INLINE __m512i size_bits(__m512i bits) { return _mm512_and_si512(bits, _mm512_set1_epi32(0x7fffffff)); }

// `(v + c) - c` with c = kRound * step.
DITPRESS_INLINE __m512 round_to(__m512 v, __m512 c) { return _mm512_sub_ps(_mm512_add_ps(v, c), c); }

DITPRESS_INLINE void store_chunk(int8_t* q, __m512i values) {
  _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtsepi32_epi8(values));
}

// For conversions that round to the nearest whole number; E2M1 has wider steps from 4 and from 8 on.
template <class Format>
DITPRESS_INLINE __m512 to_grid(__m512 v) {
  if constexpr (std::is_same_v<Format, Fp4>) {
    const __m512 size = _mm512_abs_ps(v);
    __m512 c = _mm512_set1_ps(kRound);
    c = _mm512_mask_mov_ps(c, _mm512_cmp_ps_mask(size, _mm512_set1_ps(4.0f), _CMP_GE_OQ), _mm512_set1_ps(2 * kRound));
    c = _mm512_mask_mov_ps(c, _mm512_cmp_ps_mask(size, _mm512_set1_ps(8.0f), _CMP_GE_OQ), _mm512_set1_ps(4 * kRound));
    return round_to(v, c);
  }
  return v;
}

template <class Format>
void quantize_groups_of(const RowJob& job) {
  int8_t* q = job.q;
  for (int64_t g = 0; g < job.groups; ++g) {
    const float* const x = job.x + g * job.group;
    __m512i top = _mm512_setzero_si512(), amax = top;
    for (int64_t i = 0; i < job.group; i += kChunk) {
      const __m512i bits = _mm512_maskz_loadu_epi32(first_lanes(job.group - i), x + i);
      top = _mm512_max_epi32(top, size_bits(bits));
      if (Format::kPositive) amax = _mm512_max_epi32(amax, bits);  // negative numbers are negative integers
    }
    const auto largest = static_cast<uint32_t>(_mm512_reduce_max_epi32(top));
    float factor;
    low_bit_factors(Format::kPositive ? static_cast<uint32_t>(_mm512_reduce_max_epi32(amax)) : largest, largest,
                    Format::kLevels, 1.0f, kTiny, job.scale + g * job.start_stride, &factor);
    const __m512 factors = _mm512_set1_ps(factor);
    const __mmask16 keep = factor == 0.0f ? 0 : 0xffff;  // keeps infinity * 0 out
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < job.padded_group; i += kChunk, q += job.q_stride) {
      __m512 v = _mm512_maskz_loadu_ps(first_lanes(job.group - i), x + i);
      if (Format::kPositive) v = _mm512_max_ps(v, _mm512_setzero_ps());
      const __m512i values = _mm512_maskz_cvtps_epi32(keep, to_grid<Format>(_mm512_mul_ps(v, factors)));
      sum = _mm512_add_epi32(sum, values);
      store_chunk(q, values);
    }
    job.start[g * job.start_stride] = -128 * _mm512_reduce_add_epi32(sum);
  }
}

}  // namespace

void avx512::quantize_groups(const RowJob& job, Activation activation) {
  switch (activation) {
    case Activation::kInt4: return quantize_groups_of<Int4>(job);
    case Activation::kUint4: return quantize_groups_of<Uint4>(job);
    default: return quantize_groups_of<Fp4>(job);
  }
}

void avx512::quantize_fp8(const RowJob& job) {
  const int64_t k = job.groups * job.group;
  __m512i top = _mm512_setzero_si512();
  for (int64_t i = 0; i < k; i += kChunk)
    top = _mm512_max_epi32(top, size_bits(_mm512_maskz_loadu_epi32(first_lanes(k - i), job.x + i)));
  const auto largest = static_cast<uint32_t>(_mm512_reduce_max_epi32(top));
  float factor, unit;
  low_bit_factors(largest, largest, kFp8Levels, kFp8Units, kFp8Tiny, &unit, &factor);
  for (int digit = 0; digit < kDigits; ++digit) job.scale[digit] = unit * kDigitWeight[digit];
  const __m512 factors = _mm512_set1_ps(factor), units = _mm512_set1_ps(kFp8Units), round = _mm512_set1_ps(kRound);
  const __mmask16 keep = factor == 0.0f ? 0 : 0xffff;
  int8_t* q = job.q;
  for (int64_t g = 0; g < job.groups; ++g) {
    const float* const x = job.x + g * job.group;
    __m512i sum[kDigits] = {};
    for (int64_t i = 0; i < job.padded_group; i += kChunk, q += job.q_stride) {
      const __m512 scaled = _mm512_mul_ps(_mm512_maskz_loadu_ps(first_lanes(job.group - i), x + i), factors);
      const __m512 v = _mm512_maskz_mul_ps(keep, scaled, units);
      // steps of four significant bits, and none below 1
      const __m512i exponent = _mm512_and_si512(_mm512_castps_si512(v), _mm512_set1_epi32(0x7f800000));
      const __m512i step = _mm512_max_epi32(_mm512_sub_epi32(exponent, _mm512_set1_epi32(3 << 23)),
                                            _mm512_set1_epi32(127 << 23));
      __m512 left = round_to(v, _mm512_mul_ps(_mm512_castsi512_ps(step), round));
      DITPRESS_EACH(kDigits, digit)
        const __m512 value = round_to(_mm512_mul_ps(left, _mm512_set1_ps(1.0f / kDigitWeight[digit])), round);
        left = _mm512_sub_ps(left, _mm512_mul_ps(value, _mm512_set1_ps(kDigitWeight[digit])));
        const __m512i whole = _mm512_cvtps_epi32(value);
        sum[digit] = _mm512_add_epi32(sum[digit], whole);
        store_chunk(q + digit * kChunk, whole);
      DITPRESS_END
    }
    DITPRESS_EACH(kDigits, digit)
      job.start[g * job.start_stride + digit] = -128 * _mm512_reduce_add_epi32(sum[digit]);
    DITPRESS_END
  }
}

}  // namespace ditpress
