// sdot adds four products of signed bytes to an int32; the activations of four quads of k lie in one register.
#include "../simd/floats_neon.h"
#include "../simd/int8.h"

#include "common.h"

namespace ditpress {
namespace {

struct SignedDot {
  using Floats = ditpress::Floats;
  static constexpr int kRows = neon::kRows;

  static DITPRESS_INLINE int32x4_t first(const int32_t*) { return vdupq_n_s32(0); }

  template <int Rows>
  static DITPRESS_INLINE void multiply(const int8_t* a, const uint8_t* w, int64_t chunks, int32x4_t (&acc)[Rows][4]) {
    for (int64_t chunk = 0; chunk < chunks; ++chunk, a += Rows * kChunk, w += 4 * 4 * neon::kVector) {
      int8x16_t value[Rows];
      DITPRESS_EACH(Rows, r) value[r] = vld1q_s8(a + r * kChunk); DITPRESS_END
      DITPRESS_EACH(4, quad)
        DITPRESS_EACH(4, v)
          const int8x16_t weight = vreinterpretq_s8_u8(vld1q_u8(w + (quad * 4 + v) * neon::kVector));
          DITPRESS_EACH(Rows, r) acc[r][v] = vdotq_laneq_s32(acc[r][v], weight, value[r], quad); DITPRESS_END
        DITPRESS_END
      DITPRESS_END
    }
  }
};

}  // namespace

void neon::int8_panel(const Int8Job& job) { int8_panels<SignedDot>(job); }
void neon::sum_row(const SumJob& job) { sum_parts<Floats>(job); }

}  // namespace ditpress
