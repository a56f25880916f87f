// vpdpbusd adds four products of unsigned bytes (weights + 128) and signed bytes (activations) to an int32. The 128 too
// much per weight is taken back before the sum starts: accumulators begin at -128 * (sum of the activations).
#include "int8.h"

#include "../simd/floats_avx2.h"
#include "../simd/int8.h"

namespace ditpress {
namespace {

struct OffsetDot {
  using Floats = ditpress::Floats;
  static constexpr int kRows = avxvnni::kRows;

  static DITPRESS_INLINE __m256i first(const int32_t* start) { return _mm256_set1_epi32(*start); }

  // Four bytes of one row against both vectors. As an asm statement because gcc 12 otherwise moves or spills
  // accumulators inside the loop; the instructions are those of the intrinsics.
  static DITPRESS_INLINE void row_step(const int8_t* a, const __m256i (&b)[2], __m256i (&c)[2]) {
    using Four = int8_t[4];
    __m256i value;
    asm volatile(
        "vpbroadcastd %[a], %[value]\n\t"
        "%{vex%} vpdpbusd %[value], %[b0], %[c0]\n\t"
        "%{vex%} vpdpbusd %[value], %[b1], %[c1]"
        : [c0] "+x"(c[0]), [c1] "+x"(c[1]), [value] "=&x"(value)
        : [b0] "x"(b[0]), [b1] "x"(b[1]), [a] "m"(*reinterpret_cast<const Four*>(a)));
  }

  template <int Rows>
  static DITPRESS_INLINE void multiply(const int8_t* a, const uint8_t* w, int64_t chunks, __m256i (&acc)[Rows][2]) {
    const int8_t* const end = a + chunks * Rows * kChunk;
    do {
      DITPRESS_EACH(4, quad)
        __m256i b[2];
        DITPRESS_EACH(2, v)
          b[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + (quad * 2 + v) * 32));
        DITPRESS_END
        DITPRESS_EACH(Rows, r) row_step(a + r * kChunk + quad * 4, b, acc[r]); DITPRESS_END
      DITPRESS_END
      a += Rows * kChunk;
      w += 4 * 4 * kColumns;
    } while (a != end);
  }
};

}  // namespace

void avxvnni::int8_panel(const Int8Job& job) { int8_panels<OffsetDot>(job); }

}  // namespace ditpress
