// Attention over all heads, on the host's threads.
#include "attend.h"

#include <stdexcept>
#include <string>

#include "buffer.h"

namespace ditpress {
namespace {

thread_local Buffer<float> t_workspace;

// Enough for the packed keys, values, queries and scores of one head on every path.
int64_t workspace_values(const AttentionCall& call) {
  const int64_t keys = (call.keys + 63) / 64 * 64, width = (call.width + 31) / 32 * 32;
  return keys * width * 2 + 16 * width + 16 * keys;
}

}  // namespace

void attend(const AttentionCall& call, const Kernels& kernels, const Pool& pool) {
  if (call.batch < 1 || call.heads < 1 || call.queries < 1) return;
  if (call.keys < 1 || call.width < 1) throw std::invalid_argument("attention has no keys or heads without width");
  if (call.mask && call.mask_stride[3] != 0 && call.mask_stride[3] != 1)
    throw std::invalid_argument("values of a mask lie " + std::to_string(call.mask_stride[3]) +
                                " apart along the keys, expected 1, or 0 for one value for all keys");
  const int64_t row = call.heads * call.width;
  const auto run = call.bf16 && kernels.attention_bf16 ? kernels.attention_bf16 : kernels.attention;
  parallel_for(pool, call.batch * call.heads, [&](int64_t i, int64_t upcoming) {
    const int64_t b = i / call.heads, h = i % call.heads;
    t_workspace.reserve(workspace_values(call));
    AttentionJob job = {};
    const auto at = [&](const float* x, int64_t rows, int64_t head) {
      return x + head / call.heads * rows * row + head % call.heads * call.width;
    };
    job.q = at(call.q, call.queries, i);
    job.k = at(call.k, call.keys, i);
    job.v = at(call.v, call.keys, i);
    job.y = call.y + (job.q - call.q);
    if (upcoming >= 0) {
      job.next_q = at(call.q, call.queries, upcoming);
      job.next_k = at(call.k, call.keys, upcoming);
      job.next_v = at(call.v, call.keys, upcoming);
    }
    job.mask = call.mask ? call.mask + b * call.mask_stride[0] + h * call.mask_stride[1] : nullptr;
    job.q_stride = job.k_stride = job.v_stride = job.y_stride = row;
    job.mask_t = call.mask_stride[2];
    job.mask_s = call.mask_stride[3];
    job.queries = call.queries;
    job.keys = call.keys;
    job.width = call.width;
    job.scale = call.scale;
    job.workspace = t_workspace.data();
    run(job);
  });
}

}  // namespace ditpress
