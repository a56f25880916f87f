#include "ort_kernel.h"

#include <algorithm>
#include <thread>

#include "isa.h"
#include "pages.h"

namespace ditpress::ort {
namespace {

std::vector<int64_t> shape_of(const Api& api, const Value* value) {
  TensorInfo* info = nullptr;
  check(api.tensor_info(value, &info));
  size_t rank = 0;
  std::vector<int64_t> shape;
  Status* status = api.dimension_count(info, &rank);
  if (!status) {
    shape.resize(rank);
    status = api.dimensions(info, shape.data(), rank);
  }
  api.release_tensor_info(info);
  check(status);
  return shape;
}

template <class T>
T* data_of(const Api& api, const Value* value) {
  void* data = nullptr;
  check(api.tensor_data(const_cast<Value*>(value), &data));
  return static_cast<T*>(data);
}

std::string text(const std::vector<int64_t>& shape) {
  std::string result = "[";
  for (size_t i = 0; i < shape.size(); ++i) result += (i ? ", " : "") + std::to_string(shape[i]);
  return result + "]";
}

}  // namespace

Kernel::Kernel(const Op& op, const Api& api_, const KernelInfo* info)
    : api(api_), op_(op), kernels_(default_kernels()) {
  size_t length = 0;
  check(api.node_name(info, nullptr, &length));
  std::vector<char> name(length + 1);
  check(api.node_name(info, name.data(), &length));
  node_ = name.data();
  check(api.int_attribute(info, "N", &n_));
  check(api.int_attribute(info, "K", &k_));
  check(api.int_attribute(info, "group_size", &group_));
  if (n_ < 1 || k_ < 1) fail("N=" + std::to_string(n_) + ", K=" + std::to_string(k_) + ", expected both >= 1");
  if (group_ < 1 || k_ % group_)
    fail("group_size=" + std::to_string(group_) + ", expected a divisor of K=" + std::to_string(k_));
  const Value* inputs[kInputs] = {};
  bool constant[kInputs] = {};
  for (size_t i = kCodes; i < kInputs; ++i) {
    int is_constant = 0;
    check(api.constant_input(info, i, &is_constant, &inputs[i]));
    constant[i] = is_constant != 0;
  }
  if (constant[kBias]) {
    expect(inputs[kBias], "bias", {n_});
    bias_checked_ = true;
  }
  if (constant[kCodes] && constant[kScale] && constant[kCodebook]) {
    const WeightSource weight = source(inputs);
    weight_ = std::make_unique<Weight>(weight, *kernels_);
    drop_file_pages(weight.codes, static_cast<size_t>(n_ * ((k_ * op_.bits + 7) / 8)));
  }
}

void Kernel::expect(const Value* value, const char* what, const std::vector<int64_t>& shape) const {
  const std::vector<int64_t> got = shape_of(api, value);
  if (got != shape) fail(std::string(what) + " is " + text(got) + ", expected " + text(shape));
}

WeightSource Kernel::source(const Value* const (&inputs)[kInputs]) const {
  const int64_t groups = k_ / group_;
  expect(inputs[kCodes], "codes", {n_, (k_ * op_.bits + 7) / 8});
  expect(inputs[kScale], "scale", {n_, groups});
  expect(inputs[kCodebook], "codebook", {int64_t{1} << op_.bits});
  return {data_of<const uint8_t>(api, inputs[kCodes]),
          n_,
          k_,
          op_.bits,
          data_of<const void>(api, inputs[kScale]),
          op_.scale == Element::kFloat16,
          groups,
          data_of<const int8_t>(api, inputs[kCodebook]),
          op_.activation};
}

namespace {

// ONNX Runtime's own threads for one execution of a node.
struct Host {
  const Api& api;
  const KernelContext* context;
  Status* status = nullptr;

  static void run(void* p, int64_t count, Task task, void* data) {
    Host& host = *static_cast<Host*>(p);
    struct Call {
      Task task;
      void* data;
    } call{task, data};
    const auto body = [](void* c, size_t i) {
      static_cast<Call*>(c)->task(static_cast<Call*>(c)->data, static_cast<int64_t>(i));
    };
    if (count == 1) return body(&call, 0);
    if (!host.status)
      host.status = host.api.parallel_for(host.context, body, static_cast<size_t>(count), 0, &call);
  }
};

}  // namespace

void Kernel::compute(KernelContext* context) {
  const Value* inputs[kInputs] = {};
  for (size_t i = 0; i < kInputs; ++i) check(api.input(context, i, &inputs[i]));
  std::vector<int64_t> shape = shape_of(api, inputs[kX]);
  if (shape.empty() || shape.back() != k_)
    fail("x is " + text(shape) + ", expected a last dimension of " + std::to_string(k_));
  if (!bias_checked_) expect(inputs[kBias], "bias", {n_});
  std::unique_ptr<Weight> packed;
  if (!weight_) packed = std::make_unique<Weight>(source(inputs), *kernels_);
  int64_t m = 1;
  for (size_t i = 0; i + 1 < shape.size(); ++i) m *= shape[i];
  shape.back() = n_;
  Value* y = nullptr;
  check(api.output(context, 0, shape.data(), shape.size(), &y));
  if (m == 0) return;
  Host host{api, context};
  // The size of the runtime's pool is not told; it is the number of cores unless someone changed it.
  const int threads = std::max(1, static_cast<int>(std::thread::hardware_concurrency()));
  (weight_ ? *weight_ : *packed)
      .run(data_of<const float>(api, inputs[kX]), m, data_of<const float>(api, inputs[kBias]), data_of<float>(api, y),
           {Host::run, &host, threads});
  check(host.status);
}

}  // namespace ditpress::ort
