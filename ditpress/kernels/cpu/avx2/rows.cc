// Rows of activations: layer norm with modulation, and rounding to int8; half precision to float.
#include "../simd/floats_avx2.h"
#include "../simd/rows.h"

#include "../half.h"
#include "../low_bit_rows.h"
#include "common.h"

namespace ditpress {
namespace {

DITPRESS_INLINE __m256i magnitude_bits(__m256 x) {
  return _mm256_and_si256(_mm256_castps_si256(x), _mm256_set1_epi32(0x7fffffff));
}

// Bits of the largest magnitude. As integers, NaN > infinity > every finite number.
DITPRESS_INLINE uint32_t largest_bits(const float* x, int64_t k) {
  __m256i top[4] = {};
  int64_t i = 0;
  for (; i + 32 <= k; i += 32)
    DITPRESS_EACH(4, j) top[j] = _mm256_max_epi32(top[j], magnitude_bits(Floats::load(x + i + 8 * j))); DITPRESS_END
  for (; i < k; i += 8) top[0] = _mm256_max_epi32(top[0], magnitude_bits(Floats::load_first(x + i, k - i)));
  const __m256i four = _mm256_max_epi32(_mm256_max_epi32(top[0], top[1]), _mm256_max_epi32(top[2], top[3]));
  __m128i held = _mm_max_epi32(_mm256_castsi256_si128(four), _mm256_extracti128_si256(four, 1));
  held = _mm_max_epi32(held, _mm_shuffle_epi32(held, 0x4e));
  held = _mm_max_epi32(held, _mm_shuffle_epi32(held, 0xb1));
  return static_cast<uint32_t>(_mm_cvtsi128_si32(held));
}

// One chunk to words.
DITPRESS_INLINE __m256i round_chunk(__m256 low, __m256 high, __m256 factor) {
  const __m256i first = _mm256_cvtps_epi32(_mm256_mul_ps(low, factor));
  const __m256i second = _mm256_cvtps_epi32(_mm256_mul_ps(high, factor));
  return _mm256_permute4x64_epi64(_mm256_packs_epi32(first, second), 0xd8);
}

}  // namespace

void avx2::normalize_row(const NormJob& job) { normalize<Floats>(job); }
void avx2::residual_row(const ResidualJob& job) { residual<Floats>(job); }
void avx2::quantize_groups(const RowJob& job, Activation activation) { quantize_groups_generic(job, activation); }
void avx2::quantize_fp8(const RowJob& job) { quantize_fp8_generic(job); }

void avx2::quantize_row(const RowJob& job) {
  float factor;
  row_factors(largest_bits(job.x, job.groups * job.group), job.scale, &factor);
  const bool keep = factor != 0.0f;  // keeps infinity * 0 out
  const __m256 factors = _mm256_set1_ps(factor);
  const __m256i offset = _mm256_set1_epi16(128);
  int8_t* q = job.q;
  for (int64_t g = 0; g < job.groups; ++g) {
    const float* const x = job.x + g * job.group;
    __m256i sum = _mm256_setzero_si256();  // of 128 * value
    for (int64_t at = 0; at < job.padded_group; at += kChunk, q += job.q_stride) {
      __m256i words = _mm256_setzero_si256();
      if (keep) {
        const int64_t left = job.group - at;
        words = left >= kChunk ? round_chunk(Floats::load(x + at), Floats::load(x + at + 8), factors)
                               : round_chunk(Floats::load_first(x + at, left),
                                             left > 8 ? Floats::load_first(x + at + 8, left - 8) : Floats::zero(),
                                             factors);
      }
      sum = _mm256_add_epi32(sum, _mm256_madd_epi16(words, offset));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q),
                       _mm_packs_epi16(_mm256_castsi256_si128(words), _mm256_extracti128_si256(words, 1)));
    }
    __m128i total = _mm_add_epi32(_mm256_castsi256_si128(sum), _mm256_extracti128_si256(sum, 1));
    total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0x4e));
    total = _mm_add_epi32(total, _mm_shuffle_epi32(total, 0xb1));
    job.start[g * job.start_stride] = -_mm_cvtsi128_si32(total);
  }
}

void avx2::widen_half(const uint16_t* half, float* out, int64_t count) {
  int64_t i = 0;
  for (; i + 8 <= count; i += 8)
    Floats::store(out + i, _mm256_cvtph_ps(_mm_loadu_si128(reinterpret_cast<const __m128i*>(half + i))));
  for (; i < count; ++i) out[i] = half_to_float(half[i]);
}

}  // namespace ditpress
