// The AVX-512 kernels: VNNI at least; VBMI and BF16 where the CPU has them.
#include "kernels.h"

#include "common.h"

namespace ditpress {
namespace {

using namespace avx512;

// From this many rows on, decoding a panel once to memory costs less than decoding it for every row tile.
constexpr int64_t kDecodeOnce = 256;

Layout layout(Activation activation, bool grouped) {
  const bool wide = activation == Activation::kInt8 && !grouped;
  const int vectors = wide ? kChannelVectors : activation == Activation::kInt8 ? kGroupVectors : kFloatVectors;
  return {16 * vectors, kVector, activation == Activation::kInt8 ? 128 : 0};
}

bool decode_inside(Activation activation, int64_t m) {
  return activation == Activation::kInt8 ? m < kDecodeOnce : m <= kFloatRows;
}

int tile_rows(bool grouped, bool nibbles) {
  return !grouped ? kChannelRows : nibbles ? kGroupNibbleRows : kGroupRows;
}

}  // namespace

Kernels avx512_kernels(bool vbmi, bool bf16) {
  return {"avx512vnni",  true,       layout,     decode_inside, tile_rows, normalize_row, quantize_row,
          vbmi ? decode_vbmi : avx512::decode, widen_half, int8_panel, float_panel, attention,
          bf16 ? attention_bf16 : nullptr};
}

}  // namespace ditpress
