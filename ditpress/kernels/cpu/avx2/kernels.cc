// The AVX2 kernels.
#include "kernels.h"

#include "common.h"

namespace ditpress {
namespace {

Layout layout(Activation, bool) { return {avx2::kColumns, avx2::kVector, 0}; }
bool decode_inside(Activation, int64_t) { return false; }
int tile_rows(bool, bool) { return avx2::kRows; }

}  // namespace

Kernels avx2_kernels() {
  return {"avx2",
          true,
          layout,
          decode_inside,
          tile_rows,
          avx2::normalize_row,
          avx2::quantize_row,
          avx2::decode,
          avx2::widen_half,
          avx2::int8_panel,
          avx2::float_panel,
          avx2::attention,
          nullptr};
}

}  // namespace ditpress
