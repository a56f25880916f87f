// Codes of a panel to bytes, by byte shuffles where a table has few entries.
#include <immintrin.h>

#include "../decode.h"
#include "../unroll.h"
#include "common.h"

namespace ditpress {
namespace {

using avx2::kVector;

DITPRESS_INLINE __m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }
DITPRESS_INLINE void store(uint8_t* p, __m256i v) { _mm256_storeu_si256(reinterpret_cast<__m256i*>(p), v); }
DITPRESS_INLINE __m256i broadcast_table(const uint8_t* table) {
  return _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

// Group scales multiplied into the bytes of a quad, which are values + Offset before and after.
template <int Offset>
class Folding {
 public:
  explicit Folding(const int16_t* fold) {
    DITPRESS_EACH(2, v)
      // a factor for every byte of its column, in the order in which bytes unpack to words
      const __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128(reinterpret_cast<const __m128i*>(fold + 8 * v)));
      const __m256i twice = _mm256_or_si256(words, _mm256_slli_epi32(words, 16));
      low_[v] = _mm256_unpacklo_epi32(twice, twice);
      high_[v] = _mm256_unpackhi_epi32(twice, twice);
    DITPRESS_END
  }
  // Vector V of a quad.
  template <int V>
  DITPRESS_INLINE __m256i apply(__m256i bytes) const {
    const __m256i zero = _mm256_setzero_si256(), offset = _mm256_set1_epi8(static_cast<char>(Offset));
    const __m256i values = _mm256_xor_si256(bytes, offset);
    // value * 256 * fold, rounded by 2**15
    const __m256i low = _mm256_mulhrs_epi16(_mm256_unpacklo_epi8(zero, values), low_[V]);
    const __m256i high = _mm256_mulhrs_epi16(_mm256_unpackhi_epi8(zero, values), high_[V]);
    return _mm256_xor_si256(_mm256_packs_epi16(low, high), offset);
  }

 private:
  __m256i low_[2], high_[2];
};

struct Unfolded {
  explicit Unfolded(const int16_t*) {}
  template <int V>
  DITPRESS_INLINE __m256i apply(__m256i bytes) const { return bytes; }
};

// One nibble or pair of bits after the other, `Count` a byte.
template <int Count, class Fold>
DITPRESS_INLINE void decode_bits(const DecodeJob& job) {
  constexpr int kBits = 8 / Count;
  const Fold fold(job.fold);
  const __m256i table = broadcast_table(job.table), mask = _mm256_set1_epi8((1 << kBits) - 1);
  for (int64_t v = 0; v < job.vectors; v += Count) {
    const __m256i codes = load(job.codes + v / Count * kVector);
    DITPRESS_EACH(Count, i)
      const __m256i index = _mm256_and_si256(_mm256_srli_epi16(codes, kBits * i), mask);
      store(job.bytes + (v + i) * kVector, fold.template apply<i % 2>(_mm256_shuffle_epi8(table, index)));
    DITPRESS_END
  }
}

// A third of every byte, rounded down: in words, by a multiplication with 2**16 / 3 rounded up.
DITPRESS_INLINE __m256i third(__m256i bytes) {
  const __m256i reciprocal = _mm256_set1_epi16(21846);
  const __m256i even = _mm256_mulhi_epu16(_mm256_and_si256(bytes, _mm256_set1_epi16(255)), reciprocal);
  const __m256i odd = _mm256_mulhi_epu16(_mm256_srli_epi16(bytes, 8), reciprocal);
  return _mm256_or_si256(even, _mm256_slli_epi16(odd, 8));
}

void decode_trits(const DecodeJob& job) {
  const __m256i table = broadcast_table(job.table);  // of the first digit: byte d stands for digit d
  for (int64_t v = 0; v < job.vectors; v += 5) {
    __m256i left = load(job.codes + v / 5 * kVector);
    DITPRESS_EACH(5, i)
      const __m256i quotient = third(left);
      const __m256i thrice = _mm256_add_epi8(quotient, _mm256_add_epi8(quotient, quotient));
      store(job.bytes + (v + i) * kVector, _mm256_shuffle_epi8(table, _mm256_sub_epi8(left, thrice)));
      left = quotient;
    DITPRESS_END
  }
}

template <int Offset>
DITPRESS_INLINE void decode_with(const DecodeJob& job) {
  switch (job.coding) {
    case Coding::kNibbles:
      return job.fold ? decode_bits<2, Folding<Offset>>(job) : decode_bits<2, Unfolded>(job);
    case Coding::kPairs:
      return job.fold ? decode_bits<4, Folding<Offset>>(job) : decode_bits<4, Unfolded>(job);
    case Coding::kTrits: decode_trits(job); break;
    default: decode_generic(job, kVector); break;
  }
  if (!job.fold) return;
  const Folding<Offset> fold(job.fold);
  for (int64_t v = 0; v < job.vectors; v += 2)
    DITPRESS_EACH(2, i)
      uint8_t* const at = job.bytes + (v + i) * kVector;
      store(at, fold.template apply<i>(load(at)));
    DITPRESS_END
}

}  // namespace

void avx2::decode(const DecodeJob& job) { decode_with<0>(job); }
void avx2::decode_offset(const DecodeJob& job) { decode_with<128>(job); }

}  // namespace ditpress
