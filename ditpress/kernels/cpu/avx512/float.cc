// Weight-only products: float rows against weight bytes that are widened in registers. For the few rows of modulation
// layers the weights are read once, at the speed of memory.
#include "epilogue.h"
#include "weights.h"

namespace ditpress {
namespace {

using namespace avx512;

template <int Rows, bool Nibbles>
__attribute__((noinline)) void float_tile(const FloatJob& job, int64_t row) {
  constexpr int Vectors = kFloatVectors;
  const int64_t padded_k = job.groups * job.group_chunks * kChunk;
  const float* x = job.x + row * padded_k;
  const uint8_t* w = job.weights;
  const __m512i table = Nibbles ? broadcast_table(job.table) : _mm512_setzero_si512();
  __m512 f[Rows][Vectors];
  DITPRESS_EACH(Rows, r) DITPRESS_EACH(Vectors, v) f[r][v] = _mm512_setzero_ps(); DITPRESS_END DITPRESS_END
  for (int64_t g = 0; g < job.groups; ++g) {
    __m512 acc[Rows][Vectors];
    DITPRESS_EACH(Rows, r) DITPRESS_EACH(Vectors, v) acc[r][v] = _mm512_setzero_ps(); DITPRESS_END DITPRESS_END
    for (int64_t quad = 0; quad < job.group_chunks * 4; ++quad, x += 4) {
      __m512i b[Vectors];
      load_weights<Vectors, Nibbles>(w, table, b);
      w += Vectors * kVector / (Nibbles ? 2 : 1);
      DITPRESS_EACH(4, i)
        DITPRESS_EACH(Vectors, v)
          // byte i of every dword, sign extended
          constexpr int kLeft = 24 - 8 * decltype(i)::value;
          const __m512 weight = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(b[v], kLeft), 24));
          DITPRESS_EACH(Rows, r)
            acc[r][v] = _mm512_fmadd_ps(_mm512_set1_ps(x[r * padded_k + i]), weight, acc[r][v]);
          DITPRESS_END
        DITPRESS_END
      DITPRESS_END
    }
    DITPRESS_EACH(Vectors, v)
      const __m512 s = _mm512_loadu_ps(job.scale + (g * Vectors + v) * 16);
      DITPRESS_EACH(Rows, r) f[r][v] = _mm512_fmadd_ps(acc[r][v], s, f[r][v]); DITPRESS_END
    DITPRESS_END
  }
  DITPRESS_EACH(Vectors, v)
    const __mmask16 mask = first_lanes(job.columns - 16 * v);
    const __m512 bias = _mm512_loadu_ps(job.bias + 16 * v);
    DITPRESS_EACH(Rows, r)
      const __m512 y = finish(job.epilogue, _mm512_add_ps(f[r][v], bias), row + r, 16 * v, mask);
      _mm512_mask_storeu_ps(job.y + (row + r) * job.y_stride + 16 * v, mask, y);
    DITPRESS_END
  DITPRESS_END
}

template <bool Nibbles>
void float_tiles(const FloatJob& job) {
  for (int64_t row = 0; row < job.m; row += kFloatRows) {
    const int64_t rows = job.m - row;
    DITPRESS_EACH(kFloatRows, i)
      if (rows == i + 1 || (i + 1 == kFloatRows && rows > kFloatRows)) float_tile<i + 1, Nibbles>(job, row);
    DITPRESS_END
  }
}

}  // namespace

void avx512::float_panel(const FloatJob& job) { job.nibbles ? float_tiles<true>(job) : float_tiles<false>(job); }

}  // namespace ditpress
