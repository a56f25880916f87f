// The product: rows to int8, then panel by panel against all row tiles, on the host's threads.
#include <algorithm>
#include <cstring>

#include "weight.h"

namespace ditpress {
namespace {

// Rows are worked on in blocks whose activations take about this much, so that workspaces stay bounded.
constexpr int64_t kBlockBytes = int64_t{8} << 20;
constexpr int64_t kBlockRows = 256;  // but never less: every block decodes the panels again

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
};
thread_local Workspace t_workspace;
thread_local PanelSpace t_panel;

int64_t block_rows(int64_t bytes_per_row) { return std::max(kBlockRows, kBlockBytes / bytes_per_row); }

}  // namespace

// A panel as the kernels want it, in memory of the calling thread.
struct Weight::Panel {
  const uint8_t* weights;
  const float* scale;
  const float* bias;
  int columns;
};

Weight::Panel Weight::prepare(int64_t panel, bool nibbles, const float* bias) const {
  PanelSpace& space = t_panel;
  const int64_t first = panel * layout_.columns;
  Panel result;
  result.columns = static_cast<int>(std::min<int64_t>(layout_.columns, n_ - first));
  result.weights = panels_.data() + panel * panel_bytes_;
  if (nibbles_ && !nibbles) {
    const int64_t bytes = panel_bytes_ * 2;
    space.bytes.reserve(bytes);
    kernels_.decode(result.weights, space.bytes.data(), bytes, table_);
    result.weights = space.bytes.data();
  }
  const int64_t scales = groups_ * layout_.columns;
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

void Weight::run(const float* x, int64_t m, const float* bias, float* y, const Pool& pool) const {
  const bool int8 = activation_ == Activation::kInt8;
  const int64_t step = block_rows(int8 ? padded_k_ : padded_k_ * static_cast<int64_t>(sizeof(float)));
  for (int64_t row = 0; row < m; row += step) {
    const int64_t rows = std::min(step, m - row);
    if (int8) run_int8(x + row * k_, rows, bias, y + row * n_, pool);
    else run_float(x + row * k_, rows, bias, y + row * n_, pool);
  }
}

void Weight::run_int8(const float* x, int64_t m, const float* bias, float* y, const Pool& pool) const {
  const bool nibbles = nibbles_ && kernels_.decode_inside(activation_, m);
  const int64_t tile = kernels_.tile_rows(groups_ > 1, nibbles);
  const int64_t tiles = (m + tile - 1) / tile;

  Workspace& space = t_workspace;
  space.activations.reserve(m * padded_k_);
  space.row_scale.reserve(m);
  space.start.reserve(m * groups_);
  int8_t* const activations = space.activations.data();
  float* const row_scale = space.row_scale.data();
  int32_t* const start = space.start.data();

  parallel_for(pool, tiles, [&](int64_t t) {
    const int64_t first = tile_row(m, tiles, t), rows = tile_row(m, tiles, t + 1) - first;
    for (int64_t r = 0; r < rows; ++r)
      kernels_.quantize_row({x + (first + r) * k_, groups_, group_, padded_group_,
                             activations + first * padded_k_ + r * kChunk, rows * kChunk, row_scale + first + r,
                             start + first + r, m});
  });

  // With fewer panels than would keep all threads busy, rows are split too (each part decodes its panel again).
  const int64_t wanted = pool.threads > 1 ? (2 * pool.threads + panel_count_ - 1) / panel_count_ : 1;
  const int64_t parts = std::min(tiles, wanted);
  parallel_for(pool, panel_count_ * parts, [&](int64_t i) {
    const int64_t panel = i / parts, part = i % parts;
    const Panel p = prepare(panel, nibbles, bias);
    kernels_.int8_panel({p.weights, table_, nibbles, groups_, padded_group_ / kChunk, p.scale, p.bias, activations,
                         row_scale, start, m, tiles, tile_row(tiles, parts, part), tile_row(tiles, parts, part + 1),
                         y + panel * layout_.columns, n_, p.columns});
  });
}

void Weight::run_float(const float* x, int64_t m, const float* bias, float* y, const Pool& pool) const {
  const bool nibbles = nibbles_ && kernels_.decode_inside(activation_, m);
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
  parallel_for(pool, panel_count_, [&](int64_t panel) {
    const Panel p = prepare(panel, nibbles, bias);
    kernels_.float_panel({p.weights, table_, nibbles, groups_, padded_group_ / kChunk, p.scale, p.bias, x, m,
                          y + panel * layout_.columns, n_, p.columns});
  });
}

}  // namespace ditpress
