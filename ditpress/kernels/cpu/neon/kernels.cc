// The NEON kernels.
#include "kernels.h"

#include "common.h"

namespace ditpress {
namespace {

Layout layout(Activation, bool) { return {neon::kColumns, neon::kVector, 0}; }
bool decode_inside(Activation, int64_t) { return false; }
int tile_rows(bool, bool) { return neon::kRows; }

}  // namespace

Kernels neon_kernels() {
  return {"neon",
          true,
          layout,
          decode_inside,
          tile_rows,
          neon::normalize_row,
          neon::quantize_row,
          neon::decode,
          neon::widen_half,
          neon::int8_panel,
          neon::float_panel,
          neon::attention,
          nullptr};
}

}  // namespace ditpress
