// Types shared by all files of the library. Instruction-set files include this too, so it holds no inline code
// that the linker could merge across files compiled with different flags.
#pragma once

#include <cstddef>
#include <cstdint>

#if defined(_WIN32)
#define DITPRESS_EXPORT extern "C" __declspec(dllexport)
#else
#define DITPRESS_EXPORT extern "C" __attribute__((visibility("default")))
#endif

namespace ditpress {

// Activations are laid out in chunks of 16 values along K; every group of weights is padded to whole chunks
// (activation zero there), so any group size works and no kernel has a tail along K.
constexpr int64_t kChunk = 16;

enum class Isa { kPortable, kAvx2, kAvx512Vnni };
enum class Activation : int32_t { kNone = 0, kInt8 = 1 };

// How a weight is laid out for one instruction set: panels of `columns` outputs, in each panel
// [padded K / 4][columns][4 bytes along K]. With 4-bit codes one byte holds two codes: of each pair of vectors of
// `vector_bytes`, the first in the low nibbles and the second in the high nibbles.
struct Layout {
  int columns;
  int vector_bytes;
  int offset;  // a byte of a decoded panel is value + offset (128: unsigned operand of vpdpbusd)
};

// One panel against some row tiles, activations in int8.
struct Int8Job {
  const uint8_t* weights;  // decoded bytes, or packed nibbles when `nibbles`
  const uint8_t* table;    // 16 decoded bytes, for `nibbles`
  bool nibbles;
  int64_t groups;
  int64_t group_chunks;      // chunks of 16 per group
  const float* scale;        // [groups][columns of the layout]
  const float* bias;         // [columns of the layout]
  const int8_t* activations; // [tile][padded K / 16][rows of the tile][16]
  const float* row_scale;    // [m]
  const int32_t* start;      // [groups][m]: first value of the accumulators, -offset * sum of the group
  int64_t m;
  int64_t tiles, first_tile, last_tile;
  float* y;  // column of the panel in row 0
  int64_t y_stride;
  int columns;  // outputs of this panel that exist
};

// One panel against float rows.
struct FloatJob {
  const uint8_t* weights;
  const uint8_t* table;
  bool nibbles;
  int64_t groups;
  int64_t group_chunks;
  const float* scale;
  const float* bias;
  const float* x;  // [m][padded K]
  int64_t m;
  float* y;
  int64_t y_stride;
  int columns;
};

// One row to int8.
struct RowJob {
  const float* x;  // [k]
  int64_t groups, group, padded_group;
  int8_t* q;        // first chunk of this row
  int64_t q_stride; // bytes from one chunk of the row to the next
  float* scale;     // 1 value
  int32_t* start;   // [groups], `start_stride` apart; -128 * sum where the layout has offset 128
  int64_t start_stride;
};

// What an instruction set offers.
struct Kernels {
  Isa isa;
  const char* name;
  Layout (*layout)(Activation activation, bool grouped);
  // Whether to decode 4-bit codes inside the kernel (few rows) or once per panel into memory (many rows).
  bool (*decode_inside)(Activation activation, int64_t m);
  int (*tile_rows)(bool grouped, bool nibbles);
  void (*quantize_row)(const RowJob&);
  void (*decode)(const uint8_t* packed, uint8_t* bytes, int64_t count, const uint8_t* table);  // count: bytes out
  void (*widen_half)(const uint16_t* half, float* out, int64_t count);
  void (*int8_panel)(const Int8Job&);
  void (*float_panel)(const FloatJob&);
};

extern const Kernels kPortableKernels;
#ifdef DITPRESS_X86
extern const Kernels kAvx2Kernels;
extern const Kernels kAvx512Kernels;
#endif

// m rows in `tiles` tiles as equal as can be: the first row of tile t. tile_row(m, tiles, tiles) == m.
static inline int64_t tile_row(int64_t m, int64_t tiles, int64_t t) {
  const int64_t base = m / tiles, extra = m % tiles;
  return t * base + (t < extra ? t : extra);
}

}  // namespace ditpress
