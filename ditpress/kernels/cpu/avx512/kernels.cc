// The AVX-512 kernels: VNNI at least; VBMI and BF16 where the CPU has them.
#include "kernels.h"

#include "../avx2/common.h"
#include "common.h"

namespace ditpress {
namespace {

using namespace avx512;

// From this many rows on, decoding a panel once to memory costs less than decoding it for every row tile.
constexpr int64_t kDecodeOnce = 256;

Layout layout(bool grouped, int) { return {16 * (grouped ? kGroupVectors : kChannelVectors), kVector, 128}; }

bool decode_inside(int64_t m) { return m < kDecodeOnce; }

int tile_rows(bool grouped, bool nibbles) {
  return !grouped ? kChannelRows : nibbles ? kGroupNibbleRows : kGroupRows;
}

}  // namespace

Kernels avx512_kernels(bool vbmi, bool bf16) {
  Kernels kernels = {};
  kernels.name = "avx512vnni";
  kernels.accelerated = true;
  kernels.decodes_tables = true;
  kernels.layout = layout;
  kernels.decode_inside = decode_inside;
  kernels.tile_rows = tile_rows;
  kernels.normalize_row = normalize_row;
  kernels.quantize_row = quantize_row;
  kernels.quantize_groups = quantize_groups;
  kernels.quantize_fp8 = quantize_fp8;
  kernels.residual_row = residual_row;
  kernels.decode = vbmi ? decode_vbmi : avx512::decode;
  kernels.widen_half = widen_half;
  kernels.int8_panel = int8_panel;
  kernels.sum_row = sum_row;
  kernels.attention = attention;
  kernels.nearest = avx2::nearest;
  kernels.best_scales = avx2::best_scales;
  kernels.attention_bf16 = bf16 ? attention_bf16 : nullptr;
  return kernels;
}

}  // namespace ditpress
