// The op Attention: softmax(scale * q k^T + mask) v per head.
//   inputs      q float [B, T, H * d]; k, v [B, S, H * d]; optionally mask, 4 dimensions, each of [B, H, T, S] or 1
//   attributes  num_heads, bf16 (ints: products of bfloat16 pairs where the CPU has them), scale (float)
//   output      y float [B, T, H * d]
#pragma once

#include "../core.h"
#include "node.h"

namespace ditpress::ort {

struct AttentionOp : CustomOp {
  AttentionOp();
  const char* op_name = "Attention";
};

class AttentionKernel : public Node {
 public:
  AttentionKernel(const AttentionOp& op, const Api& api, const KernelInfo* info);
  void compute(KernelContext* context);

 private:
  int64_t heads_;
  float scale_;
  bool bf16_;
  const Kernels* kernels_;
};

}  // namespace ditpress::ort
