// The product: rows to int8, then panel by panel against all row tiles, on the host's threads.
//
// Weight-only layers run on the same integer kernel. A row is split into three int8 rows, each holding what rounding left
// of the one before, x = s0 q0 + s1 q1 + s2 q2 up to 2**-24 of the row's largest magnitude, and the three products are
// added (the splitting of Ozaki et al. 2012). That takes three times the integer work instead of the four to eight times
// that float arithmetic takes per product, and no widening of weights. Rows of E4M3 are three digits to the base 128.
#include <algorithm>
#include <atomic>
#include <stdexcept>
#include <string>
#include <vector>

#include "weight.h"

namespace ditpress {
namespace {

constexpr int kParts = 3;  // int8 rows for one row of floats or of E4M3

// Rows are worked on in equal blocks whose activations take at most about this much, so that workspaces stay bounded.
constexpr int64_t kBlockBytes = int64_t{12} << 20;
constexpr int64_t kBlockRows = 256;  // but never less: every block decodes the panels again
constexpr int64_t kShareRows = 128;  // from this many rows a thread on, decoding every panel in each thread pays
constexpr int64_t kWorkspace = int64_t{2} << 20;  // the least that comes in huge pages

// Kept per thread from call to call: fresh pages for every call would cost more than some of the calls.
struct Workspace {
  Buffer<int8_t> activations;
  Buffer<float> row_scale;
  Buffer<int32_t> start;
};
struct PanelSpace {
  Buffer<uint8_t> bytes;
  Buffer<float> scale;
  Buffer<float> bias;  // and as many zeros
  Buffer<float> row;
  Buffer<float> parts;
};
thread_local Workspace t_workspace;
thread_local PanelSpace t_panel;

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
  const float* zeros;
  int columns;
};

// Some rows of a call.
struct Weight::Block {
  const LinearCall& call;
  int64_t first, m;  // rows
  int64_t parts;     // int8 rows for each
  // Where the panel that starts at column `n` writes row 0 of the block, and how far its rows lie apart.
  float* output(int64_t n, int64_t* stride) const {
    int i = 0;
    while (i + 1 < call.outputs && n >= call.columns[i]) n -= call.columns[i++];
    *stride = call.columns[i];
    return call.y[i] + first * call.columns[i] + n;
  }
  const float* modulation_row(const SampleRows& rows, int64_t row) const {
    return rows.first + (first + row) / (call.m / call.prologue_rows) * rows.stride;
  }
  Epilogue epilogue(int64_t column, int64_t n) const {
    Epilogue e = {call.gelu, nullptr, nullptr, n, call.gate.stride, 0, 0};
    if (call.gate.first) {
      e.gate_rows = call.m / call.gate_rows;
      e.gate = call.gate.first + first / e.gate_rows * e.gate_stride + column;
      e.gate_first = first % e.gate_rows;
      e.residual = call.residual + first * n + column;
    }
    return e;
  }
};

// The packed rows of a block, in memory of the thread that called.
struct Weight::Rows {
  int64_t m, tiles;
  bool nibbles;
  int8_t* activations;
  float* scale;
  int32_t* start;
};

Weight::Panel Weight::prepare(int64_t panel, bool nibbles, const float* bias) const {
  PanelSpace& space = t_panel;
  const int64_t first = panel * layout_.columns;
  Panel result;
  result.columns = static_cast<int>(std::min<int64_t>(layout_.columns, n_ - first));
  const uint8_t* const record = panels_.data() + panel * panel_bytes_;
  result.weights = record;
  if (coding_ != Coding::kBytes && !nibbles) {
    const int64_t vectors = padded_group_ * layout_.columns / layout_.vector_bytes;
    const int64_t bytes = vectors * layout_.vector_bytes;
    space.bytes.reserve(groups_ * bytes + unit_out(coding_) * layout_.vector_bytes);
    for (int64_t g = 0; g < groups_; ++g)
      kernels_.decode({coding_, record + g * group_bytes_, table_, space.bytes.data() + g * bytes, vectors,
                       folded_ ? fold_of(record) + g * layout_.columns : nullptr,
                       tables_ > 1 ? record + select_at_ : nullptr, tables_});
    result.weights = space.bytes.data();
  }
  result.scale = reinterpret_cast<const float*>(record + scale_at_);
  if (scale_is_half_) {
    const int64_t scales = compute_groups_ * layout_.columns;
    space.scale.reserve(scales);
    kernels_.widen_half(reinterpret_cast<const uint16_t*>(record + scale_at_), space.scale.data(), scales);
    result.scale = space.scale.data();
  }
  space.bias.reserve(2 * layout_.columns);
  std::fill_n(space.bias.data(), 2 * layout_.columns, 0.0f);
  if (bias) std::copy_n(bias + first, result.columns, space.bias.data());
  result.bias = space.bias.data();
  result.zeros = space.bias.data() + layout_.columns;
  return result;
}

void Weight::run(const LinearCall& call, const Pool& pool) const {
  if (call.m == 0) return;
  if (call.modulation.first) check_items("modulation", call.prologue_rows, call.m);
  if (call.gate.first) check_items("gate", call.gate_rows, call.m);
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
  const int64_t parts = activation_ == Activation::kNone || activation_ == Activation::kFp8 ? kParts : 1;
  const int64_t rows = std::max(kBlockRows, kBlockBytes / padded_k_) / parts, blocks = (call.m + rows - 1) / rows;
  for (int64_t b = 0; b < blocks; ++b) {
    const int64_t first = tile_row(call.m, blocks, b);
    run_block({call, first, tile_row(call.m, blocks, b + 1) - first, parts}, pool);
  }
}

// Row `row` of the block as int8 rows, which lie kChunk bytes apart in their tile. `scale` and `start` take one value
// (`start`: one per group, all int8 rows of the block apart) for each.
void Weight::pack_row(const Block& block, int64_t row, int8_t* q, int64_t q_stride, float* scale,
                      int32_t* start) const {
  const LinearCall& call = block.call;
  const float* x = call.x + (block.first + row) * k_;
  Buffer<float>& space = t_panel.row;
  if (call.modulation.first || block.parts > 1) space.reserve(k_);
  if (call.modulation.first) {
    kernels_.normalize_row({x, block.modulation_row(call.shift, row), block.modulation_row(call.modulation, row),
                            space.data(), k_, call.epsilon});
    x = space.data();
  }
  if (scales_groups(activation_))
    return kernels_.quantize_groups({x, groups_, group_, padded_group_, q, q_stride, scale, start, block.m}, activation_);
  // Groups that need no sums of their own are one long row, unless padding lies between them.
  const int64_t groups = compute_groups_ == 1 && padded_group_ == group_ ? 1 : groups_;
  const int64_t group = k_ / groups, padded = padded_k_ / groups, m = block.m * block.parts;
  if (activation_ == Activation::kFp8)
    return kernels_.quantize_fp8({x, groups, group, padded, q, q_stride, scale, start, m});
  for (int64_t part = 0; part < block.parts; ++part, q += kChunk, ++scale, ++start) {
    kernels_.quantize_row({x, groups, group, padded, q, q_stride, scale, start, m});
    for (int64_t g = 1; compute_groups_ == 1 && g < groups; ++g) *start += start[g * m];
    if (part + 1 < block.parts) kernels_.residual_row({x, groups, group, padded, q, q_stride, *scale, space.data()});
    x = space.data();
  }
}

// Row tiles and panels that are multiplied by one thread if it gets to it.
struct alignas(64) Weight::Share {
  int64_t first_tile, last_tile;
  std::atomic<int64_t> next;  // panel
  int64_t last_panel;
  std::atomic<bool> packed;
};

void Weight::run_block(const Block& block, const Pool& pool) const {
  const int64_t m = block.m * block.parts, count = pool.threads;
  const bool nibbles = coding_ == Coding::kNibbles && !folded_ && tables_ == 1 && kernels_.decode_inside(m);
  const int64_t tile = kernels_.tile_rows(grouped(), nibbles) / block.parts * block.parts;
  const int64_t tiles = (m + tile - 1) / tile;

  Workspace& space = t_workspace;
  space.activations.reserve(std::max(m * padded_k_, kWorkspace));
  space.row_scale.reserve(m * (scales_groups(activation_) ? groups_ : 1));
  space.start.reserve(m * groups_);
  const Rows rows = {m, tiles, nibbles, space.activations.data(), space.row_scale.data(), space.start.data()};

  // With enough rows for all, every thread packs and multiplies its own: they stay in its cache, and nobody waits in
  // between. With fewer rows all pack together and every thread has panels of its own: their codes are one stream. Then
  // it helps where panels are left.
  const bool by_rows = m >= kShareRows * count;
  std::vector<Share> shares(static_cast<size_t>(count));
  for (int64_t s = 0; s < count; ++s) {
    Share& share = shares[static_cast<size_t>(s)];
    share.first_tile = by_rows ? tile_row(tiles, count, s) : 0;
    share.last_tile = by_rows ? tile_row(tiles, count, s + 1) : tiles;
    share.next = by_rows ? 0 : tile_row(panel_count_, count, s);
    share.last_panel = by_rows ? panel_count_ : tile_row(panel_count_, count, s + 1);
    share.packed = !by_rows;
  }
  if (!by_rows) parallel_for(pool, tiles, [&](int64_t t, int64_t) { pack_tile(block, rows, t); });
  parallel_workers(pool, count, [&](int64_t worker) {
    for (int64_t i = 0; i < count; ++i) {
      Share& share = shares[static_cast<size_t>((worker + i) % count)];
      if (i == 0 && by_rows) {
        for (int64_t t = share.first_tile; t < share.last_tile; ++t) pack_tile(block, rows, t);
        share.packed.store(true, std::memory_order_release);
      }
      // Whose rows are not packed is still at it, or has not begun: no use waiting.
      if (share.packed.load(std::memory_order_acquire)) run_share(block, rows, share);
    }
  });
}

void Weight::pack_tile(const Block& block, const Rows& rows, int64_t t) const {
  const int64_t parts = block.parts;
  const int64_t first = tile_row(block.m, rows.tiles, t), last = tile_row(block.m, rows.tiles, t + 1);
  for (int64_t r = first; r < last; ++r)
    pack_row(block, r, rows.activations + first * parts * padded_k_ + (r - first) * parts * kChunk,
             (last - first) * parts * kChunk, rows.scale + r * parts, rows.start + r * parts);
}

// All panels of a share that nobody has taken.
void Weight::run_share(const Block& block, const Rows& rows, Share& share) const {
  for (int64_t panel; (panel = share.next.fetch_add(1, std::memory_order_relaxed)) < share.last_panel;)
    run_panel(block, rows, share, panel);
}

void Weight::run_panel(const Block& block, const Rows& rows, const Share& share, int64_t panel) const {
  const int64_t parts = block.parts, column = panel * layout_.columns;
  const Panel p = prepare(panel, rows.nibbles, block.call.bias);
  const Epilogue epilogue = block.epilogue(column, n_);
  int64_t stride;
  float* const y = block.output(column, &stride);
  Int8Job job = {p.weights, table_, rows.nibbles, layout_.offset, compute_groups_,
                 padded_k_ / compute_groups_ / kChunk, p.scale, p.bias, rows.activations, rows.scale,
                 scales_groups(activation_), rows.start, rows.m, parts, rows.tiles, share.first_tile,
                 share.last_tile, y, stride, p.columns, epilogue, nullptr, panel_bytes_};
  if (panel + 1 < share.last_panel) job.next = panels_.data() + (panel + 1) * panel_bytes_;
  if (parts == 1) return kernels_.int8_panel(job);

  // Three results for every row, then their sums.
  const int64_t first = tile_row(block.m, rows.tiles, share.first_tile);
  const int64_t last = tile_row(block.m, rows.tiles, share.last_tile);
  Buffer<float>& sums = t_panel.parts;
  sums.reserve(block.m * parts * layout_.columns);
  job.y = sums.data();
  job.y_stride = layout_.columns;
  job.bias = p.zeros;
  job.epilogue = {};
  kernels_.int8_panel(job);
  for (int64_t r = first; r < last; ++r) {
    const float* const at = sums.data() + r * parts * layout_.columns;
    kernels_.sum_row({{at, at + layout_.columns, at + 2 * layout_.columns}, p.bias, p.columns, r, y + r * stride,
                      epilogue});
  }
}

}  // namespace ditpress
