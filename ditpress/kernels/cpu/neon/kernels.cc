// The NEON kernels.
#include "kernels.h"

#include "common.h"

namespace ditpress {
namespace {

Layout layout(bool, int) { return {neon::kColumns, neon::kVector, 0}; }
bool decode_inside(int64_t) { return false; }
int tile_rows(bool, bool) { return neon::kRows; }

}  // namespace

Kernels neon_kernels() {
  Kernels kernels = {};
  kernels.name = "neon";
  kernels.accelerated = true;
  kernels.layout = layout;
  kernels.decode_inside = decode_inside;
  kernels.tile_rows = tile_rows;
  kernels.normalize_row = neon::normalize_row;
  kernels.quantize_row = neon::quantize_row;
  kernels.quantize_groups = neon::quantize_groups;
  kernels.quantize_fp8 = neon::quantize_fp8;
  kernels.residual_row = neon::residual_row;
  kernels.decode = neon::decode;
  kernels.widen_half = neon::widen_half;
  kernels.int8_panel = neon::int8_panel;
  kernels.sum_row = neon::sum_row;
  kernels.attention = neon::attention;
  kernels.nearest = neon::nearest;
  kernels.best_scales = neon::best_scales;
  return kernels;
}

}  // namespace ditpress
