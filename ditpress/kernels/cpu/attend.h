// Attention over all heads.
#pragma once

#include "core.h"
#include "pool.h"

namespace ditpress {

// y = softmax(scale * q k^T + mask) v per head; q, y [batch][queries][heads * width], k, v [batch][keys][heads * width].
struct AttentionCall {
  const float *q, *k, *v;
  const float* mask;       // null: none
  int64_t mask_stride[4];  // of batch, head, query and key; 0 where all share one value, of key 0 or 1
  int64_t batch, heads, queries, keys, width;
  float scale;
  bool bf16;  // products of bfloat16 pairs where the CPU has them
  float* y;
};

// Throws std::invalid_argument, std::bad_alloc.
void attend(const AttentionCall& call, const Kernels& kernels, const Pool& pool);

}  // namespace ditpress
