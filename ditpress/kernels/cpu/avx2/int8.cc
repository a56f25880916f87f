// vpmaddubsw multiplies unsigned by signed bytes and saturates the sum of two products at 16 bits. With |w| (at most
// 128) as the unsigned operand and the activation (at most 127), its sign flipped where w < 0, as the signed one, that
// sum is at most 2 * 128 * 127 = 32512 and never saturates: the result is exact for every codebook.
#include "../simd/floats_avx2.h"
#include "../simd/int8.h"

#include <cstring>

#include "common.h"

namespace ditpress {
namespace {

struct SignedDot {
  using Floats = ditpress::Floats;
  static constexpr int kRows = avx2::kRows;

  static DITPRESS_INLINE __m256i first(const int32_t*) { return _mm256_setzero_si256(); }

  template <int Rows>
  static DITPRESS_INLINE void multiply(const int8_t* a, const uint8_t* w, int64_t chunks, __m256i (&acc)[Rows][2]) {
    const __m256i ones = _mm256_set1_epi16(1);
    for (int64_t chunk = 0; chunk < chunks; ++chunk, a += Rows * kChunk)
      for (int quad = 0; quad < 4; ++quad, w += 2 * avx2::kVector) {
        __m256i weight[2], magnitude[2];
        DITPRESS_EACH(2, v)
          weight[v] = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w + v * avx2::kVector));
          magnitude[v] = _mm256_abs_epi8(weight[v]);  // -128 becomes the unsigned byte 128
        DITPRESS_END
        DITPRESS_EACH(Rows, r)
          int32_t four;
          std::memcpy(&four, a + r * kChunk + quad * 4, sizeof four);
          const __m256i value = _mm256_set1_epi32(four);
          DITPRESS_EACH(2, v)
            const __m256i pairs = _mm256_maddubs_epi16(magnitude[v], _mm256_sign_epi8(value, weight[v]));
            acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(pairs, ones));
          DITPRESS_END
        DITPRESS_END
      }
  }
};

}  // namespace

void avx2::int8_panel(const Int8Job& job) { int8_panels<SignedDot>(job); }

}  // namespace ditpress
