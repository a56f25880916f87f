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

// How rows are rounded, as ditpress/kernels/activations.py defines it.
enum class Activation : int32_t { kNone = 0, kInt8 = 1, kInt4 = 2, kUint4 = 3, kFp4 = 4, kFp8 = 5 };

// Whether rows have a scale for every group of weights.
static constexpr bool scales_groups(Activation activation) {
  return activation == Activation::kInt4 || activation == Activation::kUint4 || activation == Activation::kFp4;
}

// How codes lie in a panel. kBytes needs no decoding; of the others one *unit* of `unit_in` vectors of codes becomes
// `unit_out` vectors of bytes (see coding.h).
enum class Coding : int32_t { kBytes, kNibbles, kPairs, kTrits, kVector8x4, kVector6x2 };

// Values up to these magnitudes leave room for sums of more than one product in 16 bits: those of INT4 and ternary tables,
// and of E2M1.
constexpr int kSmallest = 8, kSmall = 16;

// How a weight is laid out for one instruction set: panels of `columns` outputs, a decoded panel being
// [padded K / 4][columns][4 bytes along K], worked on in vectors of `vector_bytes`.
struct Layout {
  int columns;
  int vector_bytes;
  int offset;  // a byte of a decoded panel is value + offset, unsigned (0: the value itself, signed)
};

// The codes of one group of K in one panel to bytes. Whole units are written: `bytes` has room for one unit more.
struct DecodeJob {
  Coding coding;
  const uint8_t* codes;
  const uint8_t* table;  // decoded bytes, one plane per byte of a code's vector (see coding.h)
  uint8_t* bytes;
  int64_t vectors;       // of bytes
  const int16_t* fold;   // null, or per column of the panel: byte = round(value * fold / 128) + offset
  // null, or which table of 16 each column uses (kNibbles, kernels with `decodes_tables`): kSelected bytes, the columns
  // of the panel over and over
  const uint8_t* select;
  int tables;
};
constexpr int kSelected = 64;

// What happens to a result before it is stored; all pointers null: nothing. Pointers are at the first column of the
// panel and the first row of the job.
struct Epilogue {
  bool gelu;                // y = GELU(y), tanh form
  const float* gate;        // y = gate * y + residual; one row of the gate for every `gate_rows` rows
  const float* residual;
  int64_t stride;           // values from one row of the residual to the next
  int64_t gate_stride;      // and of the gate
  int64_t gate_rows;
  int64_t gate_first;       // rows of the current gate row that lie before the job's first row
};

// One panel against some row tiles, activations in int8.
struct Int8Job {
  const uint8_t* weights;     // decoded bytes, or packed nibbles when `nibbles`
  const uint8_t* table;       // 16 decoded bytes, for `nibbles`
  bool nibbles;
  int offset;                 // of the layout
  int64_t groups;
  int64_t group_chunks;       // chunks of 16 per group
  const float* scale;         // [groups][columns of the layout]
  const float* bias;          // [columns of the layout]
  const int8_t* activations;  // [tile][padded K / 16][rows of the tile][16]
  const float* row_scale;     // [m]; `scaled`: [groups][m], each sum of a group times its own
  bool scaled;
  const int32_t* start;       // [groups][m]: -128 * sum of the group, what an offset of 128 in the weights adds too much
  int64_t m;
  int64_t parts;              // a tile holds whole multiples of this many rows
  int64_t tiles, first_tile, last_tile;
  float* y;  // column of the panel in row 0
  int64_t y_stride;
  int columns;  // outputs of this panel that exist
  Epilogue epilogue;
  const uint8_t* next;  // codes that will be wanted next, to be fetched meanwhile
  int64_t next_bytes;
};

// One row to int8: q = round(x * 127 / max |x|), scale = max |x| / 127.
struct RowJob {
  const float* x;  // [k]
  int64_t groups, group, padded_group;
  int8_t* q;         // first chunk of this row
  int64_t q_stride;  // bytes from one chunk of the row to the next
  float* scale;      // 1 value
  int32_t* start;    // [groups], `start_stride` apart; -128 * sum where a layout has an offset
  int64_t start_stride;
};

// The same for other activations. quantize_groups: `scale` has a value for every group, `start_stride` apart.
// quantize_fp8: the three digits of a row are rows kChunk bytes apart in `q`, one value each in `scale` and `start`.

// What rounding left of a row: r = x - scale * q, q as a RowJob laid it out.
struct ResidualJob {
  const float* x;  // [k]; may be r
  int64_t groups, group, padded_group;
  const int8_t* q;
  int64_t q_stride;
  float scale;
  float* r;  // [k]
};

// One row: y = (x - mean) / sqrt(variance + epsilon) * (1 + modulation) + shift.
struct NormJob {
  const float* x;
  const float* shift;
  const float* modulation;
  float* y;
  int64_t k;
  float epsilon;
};

// softmax(scale * q k^T + mask) v for one head. Rows lie `*_stride` values apart.
struct AttentionJob {
  const float *q, *k, *v;
  const float* mask;  // null or at this head; value (t, s) at t * mask_t + s * mask_s
  int64_t q_stride, k_stride, v_stride, mask_t, mask_s, y_stride;
  int64_t queries, keys, width;  // width: values per head
  float scale;
  float* y;
  float* workspace;  // 64-byte aligned, of the size asked for
  // The head that will be wanted next, to be fetched meanwhile; null: none. Its rows lie as those of this head.
  const float *next_q, *next_k, *next_v;
};

// Sums of the parts of one row of a panel, finished: y = epilogue(part 0 + part 1 + part 2 + bias).
struct SumJob {
  const float* parts[3];
  const float* bias;
  int columns;
  int64_t row;  // of the epilogue
  float* y;
  Epilogue epilogue;
};

// The cheapest codeword c of every point, sum_i pressure c^2 - 2 pull c; of equal ones the first. Costs that are no number
// or infinite lose; where all do, the code is 0 and the cost infinite.
struct NearestJob {
  const float *pull, *pressure;  // [points][length]
  const float* terms;            // [entries][length]: c^2 and -2 c side by side
  int64_t points, length, entries;
  int64_t* codes;    // [points]
  float* cost;       // [points]
  float* workspace;  // 2 * length * kNearestTile values
};
constexpr int kNearestTile = 32;  // points side by side

// Which of the scales tried serves a group of weights best: least sum_i importance (scale * v(weight / scale) - weight)^2,
// v being the nearest value. Of equal ones the first; errors that are no number or infinite lose, where all do it is the
// first with an infinite error.
struct ScaleJob {
  const float* weight;      // [groups][group]
  const float* scale;       // [groups][tried]; 0 has the inverse 0
  const float* importance;  // null: all 1; [importance_rows][group], over and over
  int64_t importance_rows;
  int64_t first;            // groups of the tensor that lie before `weight`
  int64_t groups, group, tried;
  float low, high;      // least and largest value, whole numbers within +-128
  const float* values;  // null: whole numbers, half to even; else the value nearest to x at floor(2 x) - 2 low
  int64_t* best;        // [groups]
  float* error;         // [groups]
};

// What an instruction set offers.
struct Kernels {
  const char* name;
  bool accelerated;  // false: slower than what a host without this library would do
  bool decodes_tables;  // nibbles of columns that use different tables
  // `largest`: magnitude of the decoded values.
  Layout (*layout)(bool grouped, int largest);
  // Whether to decode nibbles inside the kernel (few rows) or once per panel into memory (many rows).
  bool (*decode_inside)(int64_t m);
  int (*tile_rows)(bool grouped, bool nibbles);
  void (*normalize_row)(const NormJob&);
  void (*quantize_row)(const RowJob&);
  void (*quantize_groups)(const RowJob&, Activation);
  void (*quantize_fp8)(const RowJob&);
  void (*residual_row)(const ResidualJob&);
  void (*decode)(const DecodeJob&);
  void (*widen_half)(const uint16_t* half, float* out, int64_t count);
  void (*int8_panel)(const Int8Job&);
  void (*sum_row)(const SumJob&);
  // Attention in float32 and, null where the CPU has no such instructions, with bfloat16 products.
  void (*attention)(const AttentionJob&);
  void (*attention_bf16)(const AttentionJob&);
  void (*nearest)(const NearestJob&);
  void (*best_scales)(const ScaleJob&);
};

// m rows in `tiles` tiles as equal as can be: the first row of tile t. tile_row(m, tiles, tiles) == m.
static inline int64_t tile_row(int64_t m, int64_t tiles, int64_t t) {
  const int64_t base = m / tiles, extra = m % tiles;
  return t * base + (t < extra ? t : extra);
}

// The first row of tile `t` of a job.
static inline int64_t tile_row(const Int8Job& job, int64_t t) {
  return tile_row(job.m / job.parts, job.tiles, t) * job.parts;
}

}  // namespace ditpress
