// Group scales multiplied into weight bytes.
#pragma once

#include "common.h"

namespace ditpress {
namespace {

// For panels of kChannelVectors vectors: those that have one scale per channel left.
template <bool Fold>
class Folding {
 public:
  explicit Folding(const int16_t* fold) {
    if constexpr (Fold) {
      DITPRESS_EACH(avx512::kChannelVectors, v)
        // a factor for every byte of its column, in the order in which bytes unpack to words
        const __m512i words =
            _mm512_cvtepu16_epi32(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(fold + 16 * v)));
        const __m512i twice = _mm512_or_si512(words, _mm512_slli_epi32(words, 16));
        low_[v] = _mm512_unpacklo_epi32(twice, twice);
        high_[v] = _mm512_unpackhi_epi32(twice, twice);
      DITPRESS_END
    }
  }

  // Vector `V` of a quad, bytes with offset 128 in and out.
  template <int V>
  DITPRESS_INLINE __m512i apply(__m512i bytes) const {
    if constexpr (Fold) {
      const __m512i zero = _mm512_setzero_si512(), offset = _mm512_set1_epi8(static_cast<char>(128));
      const __m512i values = _mm512_xor_si512(bytes, offset);
      // value * 256 * fold, rounded by 2**15
      const __m512i low = _mm512_mulhrs_epi16(_mm512_unpacklo_epi8(zero, values), low_[V]);
      const __m512i high = _mm512_mulhrs_epi16(_mm512_unpackhi_epi8(zero, values), high_[V]);
      return _mm512_xor_si512(_mm512_packs_epi16(low, high), offset);
    }
    return bytes;
  }

 private:
  __m512i low_[Fold ? avx512::kChannelVectors : 1], high_[Fold ? avx512::kChannelVectors : 1];
};

DITPRESS_INLINE void fold_bytes(const DecodeJob& job) {
  const Folding<true> folding(job.fold);
  for (int64_t v = 0; v < job.vectors; v += avx512::kChannelVectors)
    DITPRESS_EACH(avx512::kChannelVectors, i)
      uint8_t* const at = job.bytes + (v + i) * avx512::kVector;
      _mm512_storeu_si512(at, folding.template apply<i>(_mm512_loadu_si512(at)));
    DITPRESS_END
}

}  // namespace
}  // namespace ditpress
