// The AVX2 kernels.
#include "kernels.h"

#include "common.h"

namespace ditpress {
namespace {

Layout layout(bool, int largest) {
  return {avx2::kColumns, avx2::kVector, largest <= kSmallest ? kSmallest : largest <= kSmall ? kSmall : 0};
}
bool decode_inside(int64_t) { return false; }
int tile_rows(bool, bool) { return avx2::kRows; }

void int8_panel(const Int8Job& job) { job.offset ? avx2::small_panel(job) : avx2::int8_panel(job); }

}  // namespace

Kernels avx2_kernels() {
  Kernels kernels = {};
  kernels.name = "avx2";
  kernels.accelerated = true;
  kernels.layout = layout;
  kernels.decode_inside = decode_inside;
  kernels.tile_rows = tile_rows;
  kernels.normalize_row = avx2::normalize_row;
  kernels.quantize_row = avx2::quantize_row;
  kernels.quantize_groups = avx2::quantize_groups;
  kernels.quantize_fp8 = avx2::quantize_fp8;
  kernels.residual_row = avx2::residual_row;
  kernels.decode = avx2::decode;
  kernels.widen_half = avx2::widen_half;
  kernels.int8_panel = int8_panel;
  kernels.sum_row = avx2::sum_row;
  kernels.attention = avx2::attention;
  kernels.nearest = avx2::nearest;
  kernels.best_scales = avx2::best_scales;
  return kernels;
}

}  // namespace ditpress
