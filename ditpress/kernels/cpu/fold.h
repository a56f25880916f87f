// Group scales multiplied into decoded weights, in plain C++: byte = clamp(floor((value * fold + 64) / 128)) + offset.
#pragma once

#include "core.h"

namespace ditpress {
namespace {

// Bytes of one group of a panel: [vectors][columns of a vector][4]. `fold` holds one factor per column of the panel.
inline void fold_generic(uint8_t* bytes, int64_t vectors, const int16_t* fold, const Layout& layout) {
  const int per_vector = layout.vector_bytes / 4, across = layout.columns / per_vector;
  for (int64_t v = 0; v < vectors; ++v)
    for (int i = 0; i < layout.vector_bytes; ++i) {
      uint8_t& byte = bytes[v * layout.vector_bytes + i];
      const int factor = fold[v % across * per_vector + i / 4];
      int value = static_cast<int8_t>(byte - layout.offset) * factor;
      value = (value + 64) >> 7;
      value = value < -128 ? -128 : value > 127 ? 127 : value;
      byte = static_cast<uint8_t>(value + layout.offset);
    }
}

}  // namespace
}  // namespace ditpress
