// AVX2 + FMA. vpmaddubsw multiplies unsigned by signed bytes and saturates the sum of two products at 16 bits. With
// |w| (at most 128) as the unsigned operand and the activation (at most 127), its sign flipped where w < 0, as the
// signed one, that sum is at most 2 * 128 * 127 = 32512 and never saturates: the result is exact for every codebook.
#include "kernels.h"

#include <immintrin.h>

#include "../attention.h"
#include "../coding.h"
#include "../epilogue.h"
#include "../fold.h"
#include "../half.h"
#include "../rows.h"

namespace ditpress {
namespace {

constexpr int kVectors = 2;
constexpr int kColumns = 8 * kVectors;
constexpr int kVector = 32;
constexpr int kRows = 3;  // whole rows of weight-only layers, which are three int8 rows

Layout layout(bool) { return {kColumns, kVector, 0}; }
bool decode_inside(int64_t) { return false; }
int tile_rows(bool, bool) { return kRows; }

__m256i load(const uint8_t* p) { return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(p)); }

void decode(const DecodeJob& job) {
  if (job.coding == Coding::kNibbles) {
    const __m256i lut = _mm256_broadcastsi128_si256(_mm_loadu_si128(reinterpret_cast<const __m128i*>(job.table)));
    const __m256i mask = _mm256_set1_epi8(15);
    for (int64_t v = 0; v < job.vectors; v += 2) {
      const __m256i codes = load(job.codes + v / 2 * kVector);
      const __m256i low = _mm256_and_si256(codes, mask);
      const __m256i high = _mm256_and_si256(_mm256_srli_epi16(codes, 4), mask);
      uint8_t* const bytes = job.bytes + v * kVector;
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes), _mm256_shuffle_epi8(lut, low));
      _mm256_storeu_si256(reinterpret_cast<__m256i*>(bytes + kVector), _mm256_shuffle_epi8(lut, high));
    }
  } else {
    const int in = unit_in(job.coding), out = unit_out(job.coding);
    for (int64_t v = 0, unit = 0; v < job.vectors; v += out, ++unit)
      decode_unit(job.coding, job.codes + unit * in * kVector, job.table, job.bytes + v * kVector, kVector);
  }
  if (job.fold) fold_generic(job.bytes, job.vectors, job.fold, layout(false));
}

void widen_half(const uint16_t* half, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = half_to_float(half[i]);
}

// Writes what exists of row `r` of the panel.
void store_row(const Epilogue& epilogue, float* y, const __m256 (&value)[kVectors], int64_t r, int columns) {
  const bool plain = !epilogue.gelu && !epilogue.gate;
  if (plain && columns == kColumns) {
    for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(y + 8 * v, value[v]);
    return;
  }
  float row[kColumns];
  for (int v = 0; v < kVectors; ++v) _mm256_storeu_ps(row + 8 * v, value[v]);
  for (int n = 0; n < columns; ++n) y[n] = finish(epilogue, row[n], r, n);
}

template <int Rows>
void int8_tile(const Int8Job& job, int64_t row) {
  const int8_t* a = job.activations + row * job.groups * job.group_chunks * kChunk;
  const uint8_t* w = job.weights;
  const __m256i ones = _mm256_set1_epi16(1);
  __m256 f[Rows][kVectors];
  for (int r = 0; r < Rows; ++r)
    for (int v = 0; v < kVectors; ++v) f[r][v] = _mm256_setzero_ps();
  for (int64_t g = 0; g < job.groups; ++g) {
    __m256i acc[Rows][kVectors];
    for (int r = 0; r < Rows; ++r)
      for (int v = 0; v < kVectors; ++v) acc[r][v] = _mm256_setzero_si256();
    for (int64_t quad = 0; quad < job.group_chunks * 4; ++quad, w += kVectors * kVector) {
      __m256i weight[kVectors], magnitude[kVectors];
      for (int v = 0; v < kVectors; ++v) {
        weight[v] = load(w + v * kVector);
        magnitude[v] = _mm256_abs_epi8(weight[v]);  // -128 becomes the unsigned byte 128
      }
      for (int r = 0; r < Rows; ++r) {
        int32_t four;
        std::memcpy(&four, a + (quad / 4) * Rows * kChunk + r * kChunk + (quad % 4) * 4, sizeof four);
        const __m256i value = _mm256_set1_epi32(four);
        for (int v = 0; v < kVectors; ++v) {
          const __m256i pairs = _mm256_maddubs_epi16(magnitude[v], _mm256_sign_epi8(value, weight[v]));
          acc[r][v] = _mm256_add_epi32(acc[r][v], _mm256_madd_epi16(pairs, ones));
        }
      }
    }
    a += job.group_chunks * Rows * kChunk;
    for (int v = 0; v < kVectors; ++v) {
      const __m256 scale = _mm256_loadu_ps(job.scale + g * kColumns + 8 * v);
      for (int r = 0; r < Rows; ++r) f[r][v] = _mm256_fmadd_ps(_mm256_cvtepi32_ps(acc[r][v]), scale, f[r][v]);
    }
  }
  for (int r = 0; r < Rows; ++r) {
    const __m256 row_scale = _mm256_set1_ps(job.row_scale[row + r]);
    for (int v = 0; v < kVectors; ++v)
      f[r][v] = _mm256_fmadd_ps(f[r][v], row_scale, _mm256_loadu_ps(job.bias + 8 * v));
    store_row(job.epilogue, job.y + (row + r) * job.y_stride, f[r], row + r, job.columns);
  }
}

void int8_panel(const Int8Job& job) {
  for (int64_t t = job.first_tile; t < job.last_tile; ++t) {
    const int64_t row = tile_row(job, t);
    switch (tile_row(job, t + 1) - row) {
      case 1: int8_tile<1>(job, row); break;
      case 2: int8_tile<2>(job, row); break;
      default: int8_tile<kRows>(job, row); break;
    }
  }
}

void sum_row(const SumJob& job) { sum_row_generic(job); }
void normalize_row(const NormJob& job) { normalize_row_generic(job); }
void quantize_row(const RowJob& job) { quantize_row_generic(job); }
void residual_row(const ResidualJob& job) { residual_row_generic(job); }
void attention(const AttentionJob& job) { attention_generic(job); }

}  // namespace

Kernels avx2_kernels() {
  Kernels kernels = {};
  kernels.name = "avx2";
  kernels.accelerated = true;
  kernels.layout = layout;
  kernels.decode_inside = decode_inside;
  kernels.tile_rows = tile_rows;
  kernels.normalize_row = normalize_row;
  kernels.quantize_row = quantize_row;
  kernels.residual_row = residual_row;
  kernels.decode = decode;
  kernels.widen_half = widen_half;
  kernels.int8_panel = int8_panel;
  kernels.sum_row = sum_row;
  kernels.attention = attention;
  return kernels;
}

}  // namespace ditpress
