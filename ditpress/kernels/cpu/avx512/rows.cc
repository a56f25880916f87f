// Rows of activations: layer norm with modulation, and rounding to int8.
#include "../rows.h"

#include "common.h"

namespace ditpress {
namespace {

// 16 values of x from position i, zero from `count` on.
DITPRESS_INLINE __m512 load_values(const float* x, int64_t i, int64_t count) {
  return _mm512_maskz_loadu_ps(first_lanes(count - i), x + i);
}

// Calls f(position, mask, lane) for every 16 of k values; the compile-time `lane` in [0, 4) tells accumulators apart.
template <class F>
DITPRESS_INLINE void blocks(int64_t k, F&& f) {
  int64_t i = 0;
  for (; i + 64 <= k; i += 64)
    DITPRESS_EACH(4, lane) f(i + 16 * lane, static_cast<__mmask16>(0xffff), lane); DITPRESS_END
  for (; i < k; i += 16) f(i, first_lanes(k - i), std::integral_constant<int, 0>{});
}

DITPRESS_INLINE float sum_of(const __m512 (&parts)[4]) {
  return _mm512_reduce_add_ps(_mm512_add_ps(_mm512_add_ps(parts[0], parts[1]), _mm512_add_ps(parts[2], parts[3])));
}

DITPRESS_INLINE __m512i round_values(const float* x, __m512 factor) {
  return _mm512_cvtps_epi32(_mm512_mul_ps(_mm512_loadu_ps(x), factor));
}

// 64 values to bytes in their order.
DITPRESS_INLINE __m512i round_64(const float* x, __m512 factor) {
  // Packing works in lanes of 16 bytes; one permutation of dwords puts the bytes right.
  const __m512i order = _mm512_setr_epi32(0, 4, 8, 12, 1, 5, 9, 13, 2, 6, 10, 14, 3, 7, 11, 15);
  const __m512i low = _mm512_packs_epi32(round_values(x, factor), round_values(x + 16, factor));
  const __m512i high = _mm512_packs_epi32(round_values(x + 32, factor), round_values(x + 48, factor));
  return _mm512_permutexvar_epi32(order, _mm512_packs_epi16(low, high));
}

}  // namespace

void avx512::normalize_row(const NormJob& job) {
  const float count = static_cast<float>(job.k);
  __m512 sum[4] = {};
  blocks(job.k, [&](int64_t i, __mmask16 mask, auto lane) __attribute__((always_inline)) {
    sum[lane] = _mm512_add_ps(sum[lane], _mm512_maskz_loadu_ps(mask, job.x + i));
  });
  const __m512 mean = _mm512_set1_ps(sum_of(sum) / count);
  __m512 square[4] = {};
  blocks(job.k, [&](int64_t i, __mmask16 mask, auto lane) __attribute__((always_inline)) {
    const __m512 centred = _mm512_maskz_sub_ps(mask, _mm512_maskz_loadu_ps(mask, job.x + i), mean);
    square[lane] = _mm512_fmadd_ps(centred, centred, square[lane]);
  });
  const __m512 inverse = _mm512_set1_ps(inverse_deviation(sum_of(square) / count, job.epsilon));
  const __m512 one = _mm512_set1_ps(1.0f);
  blocks(job.k, [&](int64_t i, __mmask16 mask, auto) __attribute__((always_inline)) {
    __builtin_prefetch(job.x + job.k + i);  // the next row
    const __m512 normal = _mm512_mul_ps(_mm512_sub_ps(_mm512_maskz_loadu_ps(mask, job.x + i), mean), inverse);
    const __m512 factor = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, job.modulation + i), one);
    const __m512 y = _mm512_fmadd_ps(normal, factor, _mm512_maskz_loadu_ps(mask, job.shift + i));
    _mm512_mask_storeu_ps(job.y + i, mask, y);
  });
}

void avx512::quantize_row(const RowJob& job) {
  const int64_t k = job.groups * job.group;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest[4] = {};
  blocks(k, [&](int64_t i, __mmask16 mask, auto lane) __attribute__((always_inline)) {
    const __m512i bits = _mm512_castps_si512(_mm512_maskz_loadu_ps(mask, job.x + i));
    largest[lane] = _mm512_max_epi32(largest[lane], _mm512_and_si512(bits, magnitude));
  });
  const __m512i two[2] = {_mm512_max_epi32(largest[0], largest[1]), _mm512_max_epi32(largest[2], largest[3])};
  float factor;
  row_factors(static_cast<uint32_t>(_mm512_reduce_max_epi32(_mm512_max_epi32(two[0], two[1]))), job.scale, &factor);
  const __m512 factors = _mm512_set1_ps(factor);
  const __mmask16 keep = factor == 0.0f ? 0 : 0xffff;  // keeps infinity * 0 out
  const __m512i offset = _mm512_set1_epi8(static_cast<char>(128));
  int8_t* q = job.q;
  for (int64_t g = 0; g < job.groups; ++g) {
    const float* x = job.x + g * job.group;
    __m512i sum = _mm512_setzero_si512();  // of 128 * value
    int64_t at = 0;
    if (keep)
      for (; at + 64 <= job.group; at += 64, q += 4 * job.q_stride) {
        const __m512i values = round_64(x + at, factors);
        DITPRESS_EACH(4, j)  // the row after the next
          _mm_prefetch(reinterpret_cast<const char*>(x + 2 * k + at + 16 * j), _MM_HINT_T1);
        DITPRESS_END
        sum = _mm512_dpbusd_epi32(sum, offset, values);
        DITPRESS_EACH(4, j)
          _mm_storeu_si128(reinterpret_cast<__m128i*>(q + j * job.q_stride), _mm512_extracti32x4_epi32(values, j));
        DITPRESS_END
      }
    for (; at < job.padded_group; at += kChunk, q += job.q_stride) {
      const __m512 scaled = _mm512_mul_ps(load_values(x, at, job.group), factors);
      const __m512i value = _mm512_maskz_cvtps_epi32(keep, scaled);
      sum = _mm512_add_epi32(sum, _mm512_slli_epi32(value, 7));
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtsepi32_epi8(value));
    }
    job.start[g * job.start_stride] = -_mm512_reduce_add_epi32(sum);
  }
}

void avx512::residual_row(const ResidualJob& job) { residual_row_generic(job); }

void avx512::widen_half(const uint16_t* half, float* out, int64_t count) {
  blocks(count, [&](int64_t i, __mmask16 mask, auto) __attribute__((always_inline)) {
    _mm512_mask_storeu_ps(out + i, mask, _mm512_cvtph_ps(_mm256_maskz_loadu_epi16(mask, half + i)));
  });
}

}  // namespace ditpress
