// Weights of at most kSmall in magnitude, stored as unsigned bytes of the value + kSmall. vpmaddubsw gives sums of two
// products of such a byte and a signed activation, at most 2 * 32 * 127; four of them still fit 16 bits, so a chunk of
// 16 k is summed there and only then widened: half the instructions of the product of any two bytes.
#include "../simd/floats_avx2.h"
#include "../simd/int8.h"

#include "common.h"

namespace ditpress {
namespace {

constexpr int kQuads = kChunk / 4;
static_assert(kQuads * 2 * 2 * kSmall * 127 <= INT16_MAX, "the sums of a chunk fit 16 bits");

struct SmallDot {
  using Floats = ditpress::Floats;
  static constexpr int kRows = avx2::kRows;

  // -kSmall * sum of the activations
  static DITPRESS_INLINE __m256i first(const int32_t* start) { return _mm256_set1_epi32(*start / (128 / kSmall)); }

  // Four bytes of one row against both vectors. As an asm statement because gcc 12 otherwise moves and spills what should
  // stay in registers; the instructions are those of the intrinsics.
  static DITPRESS_INLINE void row_step(const int8_t* a, const __m256i (&b)[2], __m256i (&c)[2]) {
    using Four = int8_t[4];
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

  template <int Rows>
  static DITPRESS_INLINE void multiply(const int8_t* a, const uint8_t* w, int64_t chunks, __m256i (&acc)[Rows][2]) {
    const __m256i ones = _mm256_set1_epi16(1);
    const int8_t* const end = a + chunks * Rows * kChunk;
    do {
      __m256i sums[Rows][2];
      DITPRESS_EACH(Rows, r) DITPRESS_EACH(2, v) sums[r][v] = _mm256_setzero_si256(); DITPRESS_END DITPRESS_END
      DITPRESS_EACH(4, quad)
        __m256i b[2];
        DITPRESS_EACH(2, v)
          b[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + (quad * 2 + v) * avx2::kVector));
        DITPRESS_END
        DITPRESS_EACH(Rows, r) row_step(a + r * kChunk + quad * 4, b, sums[r]); DITPRESS_END
      DITPRESS_END
      DITPRESS_EACH(Rows, r)
        DITPRESS_EACH(2, v) acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(sums[r][v], ones)); DITPRESS_END
      DITPRESS_END
      a += Rows * kChunk;
      w += 4 * 4 * kColumns;
    } while (a != end);
  }
};

}  // namespace

void avx2::small_panel(const Int8Job& job) { int8_panels<SmallDot>(job); }

}  // namespace ditpress
