#include "linear.h"

#include <numeric>

#include "../isa.h"
#include "../pages.h"

namespace ditpress::ort {

LinearOp::LinearOp(const char* name_, int entries_, int vector_length_, bool tables_, Activation activation_,
                   Element scale_)
    : CustomOp{}, op_name(name_), entries(entries_), vector_length(vector_length_), tables(tables_),
      activation(activation_), scale(scale_) {
  describe<LinearOp, LinearKernel>(*this);
  input_count = [](const CustomOp* op) -> size_t { return static_cast<const LinearOp*>(op)->tables ? 7 : 6; };
  input_type = [](const CustomOp* op, size_t i) {
    switch (i) {
      case 1: return Element::kUInt8;
      case 2: return static_cast<const LinearOp*>(op)->scale;
      case 3: return Element::kInt8;
      case 5: return static_cast<const LinearOp*>(op)->tables ? Element::kUInt8 : Element::kFloat;
      default: return Element::kFloat;
    }
  };
  input_presence = [](const CustomOp* op, size_t i) {
    return i < op->input_count(op) - 1 ? Presence::kRequired : Presence::kVariadic;
  };
  variadic_input_min = [](const CustomOp*) { return 0; };
  output_count = [](const CustomOp*) -> size_t { return 1; };
  output_presence = [](const CustomOp*, size_t) { return Presence::kVariadic; };
  variadic_output_min = [](const CustomOp*) { return 1; };
}

LinearKernel::LinearKernel(const LinearOp& op, const Api& api_, const KernelInfo* info)
    : Node(op.op_name, api_, info),
      op_(op),
      n_(int_attribute(info, "N", 0)),
      k_(int_attribute(info, "K", 0)),
      group_(int_attribute(info, "group_size", 0)),
      fold_scales_(int_attribute(info, "fold_scales", 0) != 0),
      splits_(ints_attribute(info, "splits")),
      columns_(ints_attribute(info, "columns")),
      kernels_(default_kernels()) {
  if (n_ < 1 || k_ < 1) fail("N=" + std::to_string(n_) + ", K=" + std::to_string(k_) + ", expected both >= 1");
  if (group_ < 1 || k_ % group_)
    fail("group_size=" + std::to_string(group_) + ", expected a divisor of K=" + std::to_string(k_));
  const std::string prologue = text_attribute(info, "prologue"), epilogue = text_attribute(info, "epilogue");
  norm_ = prologue == "layer_norm_modulate";
  if (norm_) epsilon_ = float_attribute(info, "epsilon", 1e-5f);
  gelu_ = epilogue == "gelu_tanh";
  gate_ = epilogue == "gate_residual";
  if (!norm_ && !prologue.empty()) fail("prologue '" + prologue + "' is unknown, expected layer_norm_modulate");
  if (!gelu_ && !gate_ && !epilogue.empty())
    fail("epilogue '" + epilogue + "' is unknown, expected gelu_tanh or gate_residual");
  if (splits_.empty()) splits_ = {n_};
  for (size_t i = 0; i < splits_.size(); ++i)
    if (splits_[i] < 1 || (i + 1 < splits_.size() && splits_[i] % 64))
      fail("splits " + text(splits_) + ", expected multiples of 64 before the last");
  if (std::accumulate(splits_.begin(), splits_.end(), int64_t{0}) != n_)
    fail("splits " + text(splits_) + " do not add up to N=" + std::to_string(n_));
  if (gate_ && splits_.size() > 1) fail("gate_residual goes with one output, not with splits");
  const size_t cut = (norm_ ? 2 : 0) + (gate_ ? 1 : 0);
  if (!columns_.empty() && columns_.size() != cut)
    fail("columns " + text(columns_) + ", expected one for each of " + std::to_string(cut) + " inputs");
  for (const int64_t column : columns_)
    if (column < 0) fail("columns " + text(columns_) + ", expected none below 0");

  const Value* inputs[kMostOwn] = {};
  bool constant[kMostOwn] = {};
  for (size_t i = kCodes; i < own(); ++i) {
    int is_constant = 0;
    check(api.constant_input(info, i, &is_constant, &inputs[i]));
    constant[i] = is_constant != 0;
  }
  if (constant[kBias]) {
    expect(inputs[kBias], "bias", {n_});
    bias_checked_ = true;
  }
  if (constant[kCodes] && constant[kScale] && constant[kCodebook] && (!op_.tables || constant[kTable])) {
    const WeightSource weight = source(inputs);
    weight_ = std::make_unique<Weight>(weight, *kernels_);
    const int64_t row = code_bytes(k_ / op_.vector_length, op_.entries);
    drop_file_pages(weight.codes, static_cast<size_t>(n_ * row));
  }
}

WeightSource LinearKernel::source(const Value* const* inputs) const {
  const int64_t groups = k_ / group_, d = op_.vector_length;
  if (k_ % d) fail("K=" + std::to_string(k_) + ", expected a multiple of the vector length " + std::to_string(d));
  expect(inputs[kCodes], "codes", {n_, code_bytes(k_ / d, op_.entries)});
  expect(inputs[kScale], "scale", {n_, groups});
  int64_t tables = 1;
  if (op_.tables) {
    tables = count_of(shape_of(api, inputs[kCodebook])) / op_.entries;
    expect(inputs[kTable], "table", {n_});
  }
  expect(inputs[kCodebook], "codebook", {tables * op_.entries * d});
  WeightSource result;
  result.codes = data_of<const uint8_t>(api, inputs[kCodes]);
  result.n = n_;
  result.k = k_;
  result.entries = op_.entries;
  result.vector_length = op_.vector_length;
  result.codebook = data_of<const int8_t>(api, inputs[kCodebook]);
  result.scale = data_of<const void>(api, inputs[kScale]);
  result.scale_is_half = op_.scale == Element::kFloat16;
  result.groups = groups;
  result.activation = op_.activation;
  result.fold_scales = fold_scales_;
  result.tables = static_cast<int>(tables);
  result.table = op_.tables ? data_of<const uint8_t>(api, inputs[kTable]) : nullptr;
  return result;
}

SampleRows LinearKernel::sample_rows(const Value* value, const char* what, size_t place, int64_t width,
                                     int64_t* count) const {
  const float* const data = data_of<const float>(api, value);
  if (columns_.empty()) {
    *count = expect_rows(value, what, width);
    return {data, width};
  }
  const Shape shape = shape_of(api, value);
  *count = shape.empty() ? 1 : shape[0];
  const int64_t stride = *count ? count_of(shape) / *count : width, column = columns_[place];
  if (*count && column > stride - width)
    fail(std::string(what) + " is " + text(shape) + ", expected rows of " + std::to_string(width) + " values from column " +
         std::to_string(column) + " on");
  return {data + (*count ? column : 0), stride};
}

void LinearKernel::compute(KernelContext* context) {
  constexpr size_t kMost = kMostOwn + 4;
  const size_t wanted = own() + (norm_ ? 2 : 0) + (gate_ ? 2 : 0);
  size_t given = 0, outputs = 0;
  check(api.input_count(context, &given));
  check(api.output_count(context, &outputs));
  if (given != wanted) fail(std::to_string(given) + " inputs, expected " + std::to_string(wanted));
  if (outputs != splits_.size())
    fail(std::to_string(outputs) + " outputs, expected " + std::to_string(splits_.size()));
  const Value* inputs[kMost] = {};
  for (size_t i = 0; i < given; ++i) check(api.input(context, i, &inputs[i]));
  if (!bias_checked_) expect(inputs[kBias], "bias", {n_});
  std::unique_ptr<Weight> packed;
  if (!weight_) {
    packed = std::make_unique<Weight>(source(inputs), *kernels_);
  }

  Shape shape = shape_of(api, inputs[kX]);
  LinearCall call = {};
  call.m = expect_rows(inputs[kX], "x", k_);
  call.x = data_of<const float>(api, inputs[kX]);
  call.bias = data_of<const float>(api, inputs[kBias]);
  size_t next = own(), place = 0;
  if (norm_) {
    int64_t rows = 0;
    call.shift = sample_rows(inputs[next++], "shift", place++, k_, &call.prologue_rows);
    call.modulation = sample_rows(inputs[next++], "modulation", place++, k_, &rows);
    if (rows != call.prologue_rows) fail("shift and modulation have different numbers of rows");
    call.epsilon = epsilon_;
  }
  call.gelu = gelu_;
  if (gate_) {
    call.gate = sample_rows(inputs[next++], "gate", place++, n_, &call.gate_rows);
    if (expect_rows(inputs[next], "residual", n_) != call.m) fail("residual and x have different numbers of rows");
    call.residual = data_of<const float>(api, inputs[next++]);
  }
  std::vector<float*> y(outputs);
  for (size_t i = 0; i < outputs; ++i) {
    shape.back() = splits_[i];
    Value* value = nullptr;
    check(api.output(context, i, shape.data(), shape.size(), &value));
    y[i] = data_of<float>(api, value);
  }
  if (call.m == 0) return;
  call.y = y.data();
  call.columns = splits_.data();
  call.outputs = static_cast<int>(outputs);
  Host host{api, context};
  (weight_ ? *weight_ : *packed).run(call, host.pool());
  host.finish();
}

}  // namespace ditpress::ort
