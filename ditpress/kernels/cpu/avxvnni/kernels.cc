// The AVX-VNNI kernels: those of AVX2, but for the integer product and the bytes that it wants.
#include "kernels.h"

#include "../avx2/common.h"
#include "int8.h"

namespace ditpress {
namespace {

Layout layout(Activation activation, bool) {
  return {avx2::kColumns, avx2::kVector, activation == Activation::kInt8 ? 128 : 0};
}
bool decode_inside(Activation, int64_t) { return false; }
int tile_rows(bool, bool) { return avxvnni::kRows; }

}  // namespace

Kernels avxvnni_kernels() {
  return {"avxvnni",
          true,
          layout,
          decode_inside,
          tile_rows,
          avx2::normalize_row,
          avx2::quantize_row,
          avx2::decode_offset,  // the offset only matters where scales are folded: with int8 activations
          avx2::widen_half,
          avxvnni::int8_panel,
          avx2::float_panel,
          avx2::attention,
          nullptr};
}

}  // namespace ditpress
