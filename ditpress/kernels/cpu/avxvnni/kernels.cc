// The AVX-VNNI kernels: those of AVX2, but for the integer product and the bytes that it wants.
#include "kernels.h"

#include "../avx2/common.h"
#include "int8.h"

namespace ditpress {
namespace {

Layout layout(bool, int) { return {avx2::kColumns, avx2::kVector, 128}; }
bool decode_inside(int64_t) { return false; }
int tile_rows(bool, bool) { return avxvnni::kRows; }

}  // namespace

Kernels avxvnni_kernels() {
  Kernels kernels = {};
  kernels.name = "avxvnni";
  kernels.accelerated = true;
  kernels.layout = layout;
  kernels.decode_inside = decode_inside;
  kernels.tile_rows = tile_rows;
  kernels.normalize_row = avx2::normalize_row;
  kernels.quantize_row = avx2::quantize_row;
  kernels.quantize_groups = avx2::quantize_groups;
  kernels.quantize_fp8 = avx2::quantize_fp8;
  kernels.residual_row = avx2::residual_row;
  kernels.decode = avx2::decode_offset;
  kernels.widen_half = avx2::widen_half;
  kernels.int8_panel = avxvnni::int8_panel;
  kernels.sum_row = avx2::sum_row;
  kernels.attention = avx2::attention;
  kernels.nearest = avx2::nearest;
  kernels.best_scales = avx2::best_scales;
  return kernels;
}

}  // namespace ditpress
