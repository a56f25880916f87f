// The product: rows to int8, then panel by panel against all row tiles, on the host's threads.
#include <algorithm>
#include <stdexcept>
#include <string>

#include "weight.h"

namespace ditpress {
namespace {

// Rows are worked on in equal blocks whose activations take at most about this much, so that workspaces stay bounded.
constexpr int64_t kBlockBytes = int64_t{12} << 20;
constexpr int64_t kBlockRows = 256;  // but never less: every block decodes the panels again

constexpr int64_t kWorkspace = int64_t{2} << 20;  // the least that comes in huge pages

// Kept per thread from call to call: fresh pages for every call would cost more than some of the calls.
struct Workspace {
  Buffer<int8_t> activations;
  Buffer<float> row_scale;
  Buffer<int32_t> start;
  Buffer<float> padded;
};
struct PanelSpace {
  Buffer<uint8_t> bytes;
  Buffer<float> scale;
  Buffer<float> bias;
  Buffer<float> row;
};
thread_local Workspace t_workspace;
thread_local PanelSpace t_panel;

int64_t block_count(int64_t m, int64_t bytes_per_row) {
  const int64_t rows = std::max(kBlockRows, kBlockBytes / bytes_per_row);
  return (m + rows - 1) / rows;
}

void check_items(const char* what, int64_t items, int64_t m) {
  if (items < 1 || m % items)
    throw std::invalid_argument(std::string(what) + " has " + std::to_string(items) +
                                " rows, expected a divisor of the " + std::to_string(m) + " rows of x");
}

}  // namespace

// A panel as the kernels want it, in memory of the calling thread.
struct Weight::Panel {
  const uint8_t* weights;
  const float* scale;
  const float* bias;
  int columns;
};

// Some rows of a call.
struct Weight::Block {
  const LinearCall& call;
  int64_t first, m;  // rows
  // Where the panel that starts at column `n` writes row 0 of the block, and how far its rows lie apart.
  float* output(int64_t n, int64_t* stride) const {
    int i = 0;
    while (i + 1 < call.outputs && n >= call.columns[i]) n -= call.columns[i++];
    *stride = call.columns[i];
    return call.y[i] + first * call.columns[i] + n;
  }
  const float* modulation_row(const float* rows, int64_t row, int64_t k) const {
    return rows + (first + row) / (call.m / call.prologue_rows) * k;
  }
  Epilogue epilogue(int64_t column, int64_t n) const {
    Epilogue e = {call.gelu, nullptr, nullptr, n, 0, 0};
    if (call.gate) {
      e.gate_rows = call.m / call.gate_rows;
      e.gate = call.gate + first / e.gate_rows * n + column;
      e.gate_first = first % e.gate_rows;
      e.residual = call.residual + first * n + column;
    }
    return e;
  }
};

Weight::Panel Weight::prepare(int64_t panel, bool nibbles, const float* bias) const {
  PanelSpace& space = t_panel;
  const int64_t first = panel * layout_.columns;
  Panel result;
  result.columns = static_cast<int>(std::min<int64_t>(layout_.columns, n_ - first));
  result.weights = panels_.data() + panel * panel_bytes_;
  if (coding_ != Coding::kBytes && !nibbles) {
    const int64_t vectors = padded_group_ * layout_.columns / layout_.vector_bytes;
    const int64_t bytes = vectors * layout_.vector_bytes;
    space.bytes.reserve(groups_ * bytes + unit_out(coding_) * layout_.vector_bytes);
    for (int64_t g = 0; g < groups_; ++g)
      kernels_.decode({coding_, result.weights + g * group_bytes_, table_, space.bytes.data() + g * bytes, vectors,
                       fold_.bytes() ? fold_.data() + (panel * groups_ + g) * layout_.columns : nullptr});
    result.weights = space.bytes.data();
  }
  const int64_t scales = compute_groups_ * layout_.columns;
  result.scale = scale_.data() + panel * scales;
  if (scale_half_.bytes()) {
    space.scale.reserve(scales);
    kernels_.widen_half(scale_half_.data() + panel * scales, space.scale.data(), scales);
    result.scale = space.scale.data();
  }
  space.bias.reserve(layout_.columns);
  std::fill_n(space.bias.data(), layout_.columns, 0.0f);
  if (bias) std::copy_n(bias + first, result.columns, space.bias.data());
  result.bias = space.bias.data();
  return result;
}

void Weight::run(const LinearCall& call, const Pool& pool) const {
  if (call.m == 0) return;
  if (call.modulation) check_items("modulation", call.prologue_rows, call.m);
  if (call.gate) check_items("gate", call.gate_rows, call.m);
  int64_t columns = 0;
  for (int i = 0; i < call.outputs; ++i) {
    if (call.columns[i] < 1 || (i + 1 < call.outputs && call.columns[i] % layout_.columns))
      throw std::invalid_argument("a result is split at " + std::to_string(call.columns[i]) +
                                  " columns, expected a multiple of " + std::to_string(layout_.columns));
    columns += call.columns[i];
  }
  if (columns != n_)
    throw std::invalid_argument("results of " + std::to_string(columns) + " columns together, expected " +
                                std::to_string(n_));
  const bool int8 = activation_ == Activation::kInt8;
  const int64_t blocks =
      block_count(call.m, int8 ? padded_k_ : padded_k_ * static_cast<int64_t>(sizeof(float)));
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = tile_row(call.m, blocks, b);
    const Block block{call, first, tile_row(call.m, blocks, b + 1) - first};
    int8 ? run_int8(block, pool) : run_float(block, pool);
  }
}

void Weight::run_int8(const Block& block, const Pool& pool) const {
  const LinearCall& call = block.call;
  const int64_t m = block.m;
  const bool nibbles = coding_ == Coding::kNibbles && !fold_.bytes() && kernels_.decode_inside(activation_, m);
  const int64_t tile = kernels_.tile_rows(compute_groups_ > 1, nibbles);
  const int64_t tiles = (m + tile - 1) / tile;
  // Groups that need no sums of their own are one long row, unless padding lies between them.
  const bool one_row = compute_groups_ == 1 && padded_group_ == group_;
  const int64_t row_groups = one_row ? 1 : groups_;

  Workspace& space = t_workspace;
  space.activations.reserve(std::max(m * padded_k_, kWorkspace));
  space.row_scale.reserve(m);
  space.start.reserve(m * row_groups);
  int8_t* const activations = space.activations.data();
  float* const row_scale = space.row_scale.data();
  int32_t* const start = space.start.data();

  parallel_for(pool, tiles, [&](int64_t t, int64_t) {
    const int64_t first = tile_row(m, tiles, t), rows = tile_row(m, tiles, t + 1) - first;
    for (int64_t r = first; r < first + rows; ++r) {
      const float* x = call.x + (block.first + r) * k_;
      if (call.modulation) {
        Buffer<float>& row = t_panel.row;
        row.reserve(k_);
        kernels_.normalize_row({x, block.modulation_row(call.shift, r, k_),
                                block.modulation_row(call.modulation, r, k_), row.data(), k_, call.epsilon});
        x = row.data();
      }
      kernels_.quantize_row({x, row_groups, k_ / row_groups, padded_k_ / row_groups,
                             activations + first * padded_k_ + (r - first) * kChunk, rows * kChunk, row_scale + r,
                             start + r, m});
      for (int64_t g = 1; compute_groups_ == 1 && g < row_groups; ++g) start[r] += start[g * m + r];
    }
  });

  // With fewer panels than would keep all threads busy, rows are split too (each part decodes its panel again).
  const int64_t wanted = pool.threads > 1 ? (2 * pool.threads + panel_count_ - 1) / panel_count_ : 1;
  const int64_t parts = std::min(tiles, wanted);
  parallel_for(pool, panel_count_ * parts, [&](int64_t i, int64_t upcoming) {
    const int64_t panel = i / parts, part = i % parts;
    const Panel p = prepare(panel, nibbles, call.bias);
    const bool fetch = upcoming >= 0 && upcoming / parts != panel;
    int64_t stride;
    float* const y = block.output(panel * layout_.columns, &stride);
    kernels_.int8_panel({p.weights, table_, nibbles, compute_groups_, padded_k_ / compute_groups_ / kChunk, p.scale,
                         p.bias, activations, row_scale, start, m, tiles, tile_row(tiles, parts, part),
                         tile_row(tiles, parts, part + 1), y, stride, p.columns,
                         block.epilogue(panel * layout_.columns, n_),
                         fetch ? panels_.data() + upcoming / parts * panel_bytes_ : nullptr, panel_bytes_});
  });
}

void Weight::run_float(const Block& block, const Pool& pool) const {
  const LinearCall& call = block.call;
  const int64_t m = block.m;
  const bool nibbles = coding_ == Coding::kNibbles && kernels_.decode_inside(activation_, m);
  const float* x = call.x + block.first * k_;
  if (call.modulation) throw std::invalid_argument("a layer norm goes with int8 activations only");
  if (padded_k_ != k_) {
    Buffer<float>& padded = t_workspace.padded;
    padded.reserve(m * padded_k_);
    for (int64_t i = 0; i < m * groups_; ++i) {
      float* to = padded.data() + i * padded_group_;
      std::copy_n(x + i * group_, group_, to);
      std::fill(to + group_, to + padded_group_, 0.0f);
    }
    x = padded.data();
  }
  parallel_for(pool, panel_count_, [&](int64_t panel, int64_t) {
    const Panel p = prepare(panel, nibbles, call.bias);
    int64_t stride;
    float* const y = block.output(panel * layout_.columns, &stride);
    kernels_.float_panel({p.weights, table_, nibbles, groups_, padded_group_ / kChunk, p.scale, p.bias, x, m, y,
                          stride, p.columns, block.epilogue(panel * layout_.columns, n_)});
  });
}

}  // namespace ditpress
