// A weight repacked into the panels of an instruction set, and the product with it.
#pragma once

#include <cstdint>

#include "buffer.h"
#include "coding.h"
#include "core.h"
#include "pool.h"

namespace ditpress {

// The stored form of a weight, as in `ditpress::qlinear`.
struct WeightSource {
  const uint8_t* codes;     // [n][code_bytes(k / vector_length, entries)]
  int64_t n, k;
  int entries;              // of the codebook: 2, 3 (five codes a byte), 4, 16, 64 or 256
  int vector_length;        // consecutive k that one code describes
  const int8_t* codebook;   // [entries][vector_length]
  const void* scale;        // [n][groups], float or half
  bool scale_is_half;
  int64_t groups;           // a divisor of k
  Activation activation;
  bool fold_scales;         // with int8 activations and groups: see pack_scale
  int tables;               // in the codebook, one below the other; more than one: of 16 entries, vector_length 1
  const uint8_t* table;     // [n], which of them a row uses; null with one table
};

// Bytes of `count` codes of a codebook of `entries`, or 0 for a number of entries that does not exist.
int64_t code_bytes(int64_t count, int entries);

// Rows for some of the rows of x each, `stride` values from one to the next.
struct SampleRows {
  const float* first;  // null: there are none
  int64_t stride;
};

// What is computed with a weight, all tensors dense but those rows: y [m][n] = epilogue(prologue(x) [m][k] * weight +
// bias [n]).
struct LinearCall {
  const float* x;
  int64_t m;
  const float* bias;        // null: zero
  // prologue: layer norm without affine part, then * (1 + modulation) + shift. [prologue_rows][k], each row of them
  // for m / prologue_rows rows of x.
  SampleRows shift, modulation;
  int64_t prologue_rows;
  float epsilon;
  // epilogue: GELU (tanh form), or gate * y + residual with gate [gate_rows][n] and residual [m][n]
  bool gelu;
  SampleRows gate;
  const float* residual;
  int64_t gate_rows;
  // y, split by columns over `outputs` tensors. All but the last have multiples of 64 columns.
  float* const* y;
  const int64_t* columns;
  int outputs;
};

class Weight {
 public:
  // Repacks. Throws std::invalid_argument for sizes that cannot be, std::bad_alloc.
  Weight(const WeightSource& source, const Kernels& kernels);

  // Throws std::invalid_argument for rows or columns that do not divide, std::bad_alloc. The result does not depend on
  // the pool.
  void run(const LinearCall& call, const Pool& pool) const;

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t bytes() const { return static_cast<int64_t>(panels_.bytes()); }

 private:
  struct Panel;
  struct Block;
  struct Rows;
  struct Share;
  void choose_coding(const WeightSource& source);
  void pack_table(const WeightSource& source);
  void pack_panels(const WeightSource& source);
  void pack_scale(const WeightSource& source);
  void run_block(const Block& block, const Pool& pool) const;
  void pack_tile(const Block& block, const Rows& rows, int64_t tile) const;
  void run_share(const Block& block, const Rows& rows, Share& share) const;
  void run_panel(const Block& block, const Rows& rows, const Share& share, int64_t panel) const;
  void pack_row(const Block& block, int64_t row, int8_t* q, int64_t q_stride, float* scale, int32_t* start) const;
  // Whether the kernel keeps a sum for every group, as it does for rows that have a scale for each.
  bool grouped() const { return compute_groups_ > 1 || scales_groups(activation_); }
  const int8_t* table_of(const WeightSource& source, int64_t n) const;
  Panel prepare(int64_t panel, bool nibbles, const float* bias) const;

  const Kernels& kernels_;
  Layout layout_;
  Activation activation_;
  Coding coding_ = Coding::kBytes;
  int64_t n_, k_, groups_, group_, padded_group_, padded_k_;
  int64_t compute_groups_;   // groups that the kernel sees: 1 when the scales are folded
  int64_t group_bytes_;      // codes of one group of a panel
  bool folded_, scale_is_half_;
  uint8_t table_[kTableBytes] = {};
  // One record a panel, so that fetching it ahead is one stream: codes [groups][group_bytes_], factors of folded groups
  // int16 [groups][columns], tables of columns uint8 [kSelected], scales [compute_groups][columns] in float or half.
  Buffer<uint8_t> panels_;
  int tables_;
  int64_t panel_count_, panel_bytes_, fold_at_, select_at_, scale_at_;
  int16_t* fold_of(uint8_t* panel) const { return reinterpret_cast<int16_t*>(panel + fold_at_); }
  const int16_t* fold_of(const uint8_t* panel) const { return reinterpret_cast<const int16_t*>(panel + fold_at_); }
};

}  // namespace ditpress
