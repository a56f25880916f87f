// vpmaddubsw multiplies unsigned by signed bytes and saturates the sum of two products at 16 bits. With |w| (at most
// 128) as the unsigned operand and the activation (at most 127), its sign flipped where w < 0, as the signed one, that
// sum is at most 2 * 128 * 127 = 32512 and never saturates: the result is exact for every codebook.
#include "../simd/floats_avx2.h"
#include "../simd/int8.h"

#include "common.h"

namespace ditpress {
namespace {

struct SignedDot {
  using Floats = ditpress::Floats;
  static constexpr int kRows = avx2::kRows;

  static DITPRESS_INLINE __m256i first(const int32_t*) { return _mm256_setzero_si256(); }

  // Four bytes of one row against both vectors. As an asm statement because gcc 12 otherwise moves and spills what should
  // stay in registers; the instructions are those of the intrinsics.
  static DITPRESS_INLINE void row_step(const int8_t* a, const __m256i (&b)[2], const __m256i (&magnitude)[2],
                                       __m256i ones, __m256i (&c)[2]) {
    using Four = int8_t[4];
    __m256i first, second;
    asm volatile(
        "vpbroadcastd %[a], %[first]\n\t"
        "vpsignb %[b1], %[first], %[second]\n\t"
        "vpsignb %[b0], %[first], %[first]\n\t"
        "vpmaddubsw %[first], %[m0], %[first]\n\t"
        "vpmaddubsw %[second], %[m1], %[second]\n\t"
        "vpmaddwd %[first], %[ones], %[first]\n\t"
        "vpmaddwd %[second], %[ones], %[second]\n\t"
        "vpaddd %[first], %[c0], %[c0]\n\t"
        "vpaddd %[second], %[c1], %[c1]"
        : [c0] "+x"(c[0]), [c1] "+x"(c[1]), [first] "=&x"(first), [second] "=&x"(second)
        : [b0] "x"(b[0]), [b1] "x"(b[1]), [m0] "x"(magnitude[0]), [m1] "x"(magnitude[1]), [ones] "x"(ones),
          [a] "m"(*reinterpret_cast<const Four*>(a)));
  }

  template <int Rows>
  static DITPRESS_INLINE void multiply(const int8_t* a, const uint8_t* w, int64_t chunks, __m256i (&acc)[Rows][2]) {
    const __m256i ones = _mm256_set1_epi16(1);
    const int8_t* const end = a + chunks * Rows * kChunk;
    do {
      DITPRESS_EACH(4, quad)
        __m256i b[2], magnitude[2];
        DITPRESS_EACH(2, v)
          b[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + (quad * 2 + v) * avx2::kVector));
          magnitude[v] = _mm256_abs_epi8(b[v]);  // -128 becomes the unsigned byte 128
        DITPRESS_END
        DITPRESS_EACH(Rows, r) row_step(a + r * kChunk + quad * 4, b, magnitude, ones, acc[r]); DITPRESS_END
      DITPRESS_END
      a += Rows * kChunk;
      w += 4 * 4 * kColumns;
    } while (a != end);
  }
};

}  // namespace

void avx2::int8_panel(const Int8Job& job) { int8_panels<SignedDot>(job); }
void avx2::sum_row(const SumJob& job) { sum_parts<Floats>(job); }

}  // namespace ditpress
