// Weights of small magnitude, stored as unsigned bytes of the value + an offset of as much. vpmaddubsw gives sums of two
// products of such a byte and a signed activation, at most 2 * 32 * 127 with an offset of 16 and half of it with 8: four or
// eight of them still fit 16 bits, so a chunk or two of 16 k are summed there and only then widened. That takes less than
// half the instructions of the product of any two bytes.
#include "../simd/floats_avx2.h"
#include "../simd/int8.h"

#include "common.h"

namespace ditpress {
namespace {

// Offset: what was added to the weights. A sum of 16 bits takes as many chunks as never overflow it.
template <int Offset>
struct SmallDot {
  using Floats = ditpress::Floats;
  static constexpr int kRows = avx2::kRows;
  static constexpr int kQuads = kChunk / 4, kSumChunks = kSmall / Offset;
  static_assert(kSumChunks * kQuads * 2 * 2 * Offset * 127 <= INT16_MAX, "the sums fit 16 bits");

  // -Offset * sum of the activations
  static DITPRESS_INLINE __m256i first(const int32_t* start) {
    return _mm256_srai_epi32(_mm256_set1_epi32(*start), Offset == kSmallest ? 4 : 3);
  }

  // Four bytes of one row against both vectors, added to sums or, First, begun. As asm statements because gcc 12
  // otherwise moves and spills what should stay in registers; the instructions are those of the intrinsics.
  template <bool First>
  static DITPRESS_INLINE void row_step(const int8_t* a, const __m256i (&b)[2], __m256i (&c)[2]) {
    using Four = int8_t[4];
    if constexpr (First) {
      asm volatile(
          "vpbroadcastd %[a], %[c0]\n\t"
          "vpmaddubsw %[c0], %[b1], %[c1]\n\t"
          "vpmaddubsw %[c0], %[b0], %[c0]"
          : [c0] "=&x"(c[0]), [c1] "=&x"(c[1])
          : [b0] "x"(b[0]), [b1] "x"(b[1]), [a] "m"(*reinterpret_cast<const Four*>(a)));
    } else {
      __m256i first, second;
      asm volatile(
          "vpbroadcastd %[a], %[first]\n\t"
          "vpmaddubsw %[first], %[b1], %[second]\n\t"
          "vpmaddubsw %[first], %[b0], %[first]\n\t"
          "vpaddw %[first], %[c0], %[c0]\n\t"
          "vpaddw %[second], %[c1], %[c1]"
          : [c0] "+x"(c[0]), [c1] "+x"(c[1]), [first] "=&x"(first), [second] "=&x"(second)
          : [b0] "x"(b[0]), [b1] "x"(b[1]), [a] "m"(*reinterpret_cast<const Four*>(a)));
    }
  }

  // Chunks into one sum, which is then widened.
  template <int Rows, int Chunks>
  static DITPRESS_INLINE void add_chunks(const int8_t* a, const uint8_t* w, __m256i (&acc)[Rows][2]) {
    __m256i sums[Rows][2];
    DITPRESS_EACH(Chunks * kQuads, quad)
      constexpr int kChunkOf = quad / kQuads, kQuadOf = quad % kQuads;
      __m256i b[2];
      DITPRESS_EACH(2, v)
        b[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + (quad * 2 + v) * avx2::kVector));
      DITPRESS_END
      DITPRESS_EACH(Rows, r)
        row_step<quad == 0>(a + (kChunkOf * Rows + r) * kChunk + kQuadOf * 4, b, sums[r]);
      DITPRESS_END
    DITPRESS_END
    const __m256i ones = _mm256_set1_epi16(1);
    DITPRESS_EACH(Rows, r)
      DITPRESS_EACH(2, v) acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(sums[r][v], ones)); DITPRESS_END
    DITPRESS_END
  }

  template <int Rows>
  static DITPRESS_INLINE void multiply(const int8_t* a, const uint8_t* w, int64_t chunks, __m256i (&acc)[Rows][2]) {
    constexpr int kBytes = kQuads * 4 * kColumns;  // of weights, a chunk
    for (; chunks >= kSumChunks; chunks -= kSumChunks, a += kSumChunks * Rows * kChunk, w += kSumChunks * kBytes)
      add_chunks<Rows, kSumChunks>(a, w, acc);
    if (kSumChunks > 1 && chunks) add_chunks<Rows, 1>(a, w, acc);
  }
};

}  // namespace

void avx2::small_panel(const Int8Job& job) {
  job.offset == kSmallest ? int8_panels<SmallDot<kSmallest>>(job) : int8_panels<SmallDot<kSmall>>(job);
}

}  // namespace ditpress
