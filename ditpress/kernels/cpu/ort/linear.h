// The QLinear ops. All compute `ditpress::qlinear_fused`:
//   inputs      x float [..., K]; codes uint8 [N, bytes of K codes]; scale float or float16 [N, K / group_size];
//               codebook int8 [entries * vector length]; bias float [N]; then what the attributes ask for, all float:
//               shift and modulation [..., K] (prologue), gate [..., N] and residual [..., N] (epilogue)
//   attributes  N, K, group_size, fold_scales (ints); prologue ("" or "layer_norm_modulate"), epsilon; epilogue ("",
//               "gelu_tanh" or "gate_residual"); splits (ints, may be absent: columns of each output)
//   outputs     y float [..., N], or one per split
// Constant weights are repacked when the kernel is made and the pages they were mapped from are given back.
#pragma once

#include <memory>

#include "../weight.h"
#include "node.h"

namespace ditpress::ort {

struct LinearOp : CustomOp {
  LinearOp(const char* name, int entries, int vector_length, Activation activation, Element scale);
  const char* op_name;
  int entries, vector_length;
  Activation activation;
  Element scale;
};

class LinearKernel : public Node {
 public:
  LinearKernel(const LinearOp& op, const Api& api, const KernelInfo* info);
  void compute(KernelContext* context);

 private:
  enum Input : size_t { kX, kCodes, kScale, kCodebook, kBias, kExtra };
  // codes, scale and codebook as the packer takes them, their shapes checked.
  WeightSource source(const Value* const (&inputs)[kExtra]) const;

  const LinearOp& op_;
  int64_t n_, k_, group_;
  bool fold_scales_, norm_ = false, gelu_ = false, gate_ = false;
  float epsilon_ = 0;
  Shape splits_;
  const Kernels* kernels_;
  std::unique_ptr<Weight> weight_;  // null while the weight is no constant
  bool bias_checked_ = false;
};

}  // namespace ditpress::ort
