// Plain C++: any CPU. Slow, exact, and the same bits as the others.
#include "kernels.h"

#include <cmath>

#include "../attention.h"
#include "../decode.h"
#include "../epilogue.h"
#include "../fold.h"
#include "../half.h"
#include "../low_bit_rows.h"
#include "../nearest.h"
#include "../rows.h"
#include "../scales.h"

namespace ditpress {
namespace {

constexpr int kColumns = 16;
constexpr int kVector = 32;
constexpr int kRows = 6;

Layout layout(bool, int) { return {kColumns, kVector, 0}; }
bool decode_inside(int64_t) { return false; }
int tile_rows(bool, bool) { return kRows; }

void decode(const DecodeJob& job) {
  decode_generic(job, kVector);
  if (job.fold) fold_generic(job.bytes, job.vectors, job.fold, layout(false, 0));
}

void widen_half(const uint16_t* half, float* out, int64_t count) {
  for (int64_t i = 0; i < count; ++i) out[i] = half_to_float(half[i]);
}

void int8_tile(const Int8Job& job, int64_t row, int rows) {
  const int8_t* a = job.activations + row * job.groups * job.group_chunks * kChunk;
  const int8_t* w = reinterpret_cast<const int8_t*>(job.weights);
  float f[kRows][kColumns] = {};
  for (int64_t g = 0; g < job.groups; ++g) {
    int32_t acc[kRows][kColumns] = {};
    for (int64_t chunk = 0; chunk < job.group_chunks; ++chunk, a += rows * kChunk)
      for (int quad = 0; quad < 4; ++quad, w += kColumns * 4)
        for (int r = 0; r < rows; ++r) {
          const int8_t* v = a + r * kChunk + quad * 4;
          for (int n = 0; n < kColumns; ++n)
            acc[r][n] += v[0] * w[4 * n] + v[1] * w[4 * n + 1] + v[2] * w[4 * n + 2] + v[3] * w[4 * n + 3];
        }
    const float* scale = job.scale + g * kColumns;
    for (int r = 0; r < rows; ++r) {
      const float own = job.scaled ? job.row_scale[g * job.m + row + r] : 1.0f;
      for (int n = 0; n < kColumns; ++n) f[r][n] = std::fma(static_cast<float>(acc[r][n]) * own, scale[n], f[r][n]);
    }
  }
  for (int r = 0; r < rows; ++r) {
    const float own = job.scaled ? 1.0f : job.row_scale[row + r];
    for (int n = 0; n < job.columns; ++n)
      job.y[(row + r) * job.y_stride + n] = finish(job.epilogue, std::fma(f[r][n], own, job.bias[n]), row + r, n);
  }
}

void int8_panel(const Int8Job& job) {
  for (int64_t t = job.first_tile; t < job.last_tile; ++t) {
    const int64_t row = tile_row(job, t);
    int8_tile(job, row, static_cast<int>(tile_row(job, t + 1) - row));
  }
}

void sum_row(const SumJob& job) { sum_row_generic(job); }
void normalize_row(const NormJob& job) { normalize_row_generic(job); }
void quantize_row(const RowJob& job) { quantize_row_generic(job); }
void quantize_groups(const RowJob& job, Activation activation) { quantize_groups_generic(job, activation); }
void quantize_fp8(const RowJob& job) { quantize_fp8_generic(job); }
void residual_row(const ResidualJob& job) { residual_row_generic(job); }
void attention(const AttentionJob& job) { attention_generic(job); }
void nearest(const NearestJob& job) { nearest_generic(job); }
void best_scales(const ScaleJob& job) { best_scales_generic(job); }

}  // namespace

Kernels portable_kernels() {
  Kernels kernels = {};
  kernels.name = "portable";
  kernels.accelerated = false;
  kernels.layout = layout;
  kernels.decode_inside = decode_inside;
  kernels.tile_rows = tile_rows;
  kernels.normalize_row = normalize_row;
  kernels.quantize_row = quantize_row;
  kernels.quantize_groups = quantize_groups;
  kernels.quantize_fp8 = quantize_fp8;
  kernels.residual_row = residual_row;
  kernels.decode = decode;
  kernels.widen_half = widen_half;
  kernels.int8_panel = int8_panel;
  kernels.sum_row = sum_row;
  kernels.attention = attention;
  kernels.nearest = nearest;
  kernels.best_scales = best_scales;
  return kernels;
}

}  // namespace ditpress
