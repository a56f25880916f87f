// The QLinear ops. All compute `ditpress::qlinear_fused`:
//   inputs      x float [..., K]; codes uint8 [N, bytes of K codes]; scale float or float16 [N, K / group_size];
//               codebook int8 [tables * entries * vector length]; bias float [N]; only where a codebook has several
//               tables: table uint8 [N]; then what the attributes ask for, all float:
//               shift and modulation [..., K] (prologue), gate [..., N] and residual [..., N] (epilogue). With columns
//               shift, modulation and gate are [B, ...], and their rows K or N of the values of every one of B
//   attributes  N, K, group_size, fold_scales (ints); prologue ("" or "layer_norm_modulate"), epsilon; epilogue ("",
//               "gelu_tanh" or "gate_residual"); splits (ints, may be absent: columns of each output); columns (ints,
//               may be absent: the first column of shift, modulation and gate, of those there are)
//   outputs     y float [..., N], or one per split
// Constant weights are repacked when the kernel is made and the pages they were mapped from are given back.
#pragma once

#include <memory>

#include "../weight.h"
#include "node.h"

namespace ditpress::ort {

struct LinearOp : CustomOp {
  LinearOp(const char* name, int entries, int vector_length, bool tables, Activation activation, Element scale);
  const char* op_name;
  int entries, vector_length;
  bool tables;  // one of several for each output, named by a sixth input
  Activation activation;
  Element scale;
};

class LinearKernel : public Node {
 public:
  LinearKernel(const LinearOp& op, const Api& api, const KernelInfo* info);
  void compute(KernelContext* context);

 private:
  enum Input : size_t { kX, kCodes, kScale, kCodebook, kBias, kTable, kMostOwn };
  // Inputs before those that prologue and epilogue ask for.
  size_t own() const { return op_.tables ? kMostOwn : kTable; }
  // codes, scale, codebook and table as the packer takes them, their shapes checked.
  WeightSource source(const Value* const* inputs) const;
  // Shift, modulation or gate, number `place` of those there are, and the number of its rows.
  SampleRows sample_rows(const Value* value, const char* what, size_t place, int64_t width, int64_t* count) const;

  const LinearOp& op_;
  int64_t n_, k_, group_;
  bool fold_scales_, norm_ = false, gelu_ = false, gate_ = false;
  float epsilon_ = 0;
  Shape splits_, columns_;
  const Kernels* kernels_;
  std::unique_ptr<Weight> weight_;  // null while the weight is no constant
  bool bias_checked_ = false;
};

}  // namespace ditpress::ort
