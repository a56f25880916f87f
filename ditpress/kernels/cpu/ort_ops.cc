// The ops of domain "ditpress" for ONNX Runtime: QLinear4A8 and QLinear8A8 (int8 activations), QLinear4 and QLinear8
// (weight-only). All compute `ditpress::qlinear`:
//   inputs      x float [..., K]; codes uint8 [N, ceil(K * bits / 8)]; scale float or float16 [N, K / group_size];
//               codebook int8 [2**bits]; bias float [N]
//   attributes  N, K, group_size (ints)
//   output      y float [..., N]
// Constant weights are repacked when the kernel is made and the pages they were mapped from are given back.
#include <algorithm>
#include <cstdio>
#include <cstdlib>
#include <exception>
#include <memory>
#include <mutex>
#include <stdexcept>
#include <string>
#include <thread>
#include <vector>

#include "isa.h"
#include "ort_abi.h"
#include "pages.h"
#include "weight.h"

namespace ditpress {
namespace {

using namespace ort;

constexpr size_t kX = 0, kCodes = 1, kScale = 2, kCodebook = 3, kBias = 4, kInputs = 5;

// A failed call of the runtime on its way to the boundary, where the status is handed back as it is.
struct Failed {
  Status* status;
};

void check(Status* status) {
  if (status) throw Failed{status};
}

// No exception may leave the library.
template <class F>
Status* guard(const Api& api, F&& function) noexcept {
  try {
    function();
    return nullptr;
  } catch (const Failed& failed) {
    return failed.status;
  } catch (const std::invalid_argument& e) {
    return api.create_status(Error::kInvalidArgument, e.what());
  } catch (const std::bad_alloc&) {
    return api.create_status(Error::kFail, "ditpress: out of memory");
  } catch (const std::exception& e) {
    return api.create_status(Error::kRuntimeException, e.what());
  } catch (...) {
    return api.create_status(Error::kRuntimeException, "ditpress: unknown error");
  }
}

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

struct Op : CustomOp {
  Op(const char* name, int bits, Activation activation, Element scale);
  const char* op_name;
  int bits;
  Activation activation;
  Element scale;
};

class Kernel {
 public:
  Kernel(const Op& op, const Api& api, const KernelInfo* info);
  void compute(KernelContext* context);
  const Api api;

 private:
  // codes, scale and codebook as the packer takes them, their shapes checked.
  WeightSource source(const Value* const (&inputs)[kInputs]) const;
  void expect(const Value* value, const char* what, const std::vector<int64_t>& shape) const;
  [[noreturn]] void fail(const std::string& message) const {
    throw std::invalid_argument(std::string(op_.op_name) + " node '" + node_ + "': " + message);
  }

  const Op& op_;
  std::string node_;
  int64_t n_ = 0, k_ = 0, group_ = 0;
  const Kernels* kernels_;
  std::unique_ptr<Weight> weight_;  // null while the weight is no constant
  bool bias_checked_ = false;
};

Kernel::Kernel(const Op& op, const Api& api_, const KernelInfo* info) : api(api_), op_(op), kernels_(default_kernels()) {
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

void Kernel::compute(KernelContext* context) {
  const Value* inputs[kInputs] = {};
  for (size_t i = 0; i < kInputs; ++i) check(api.input(context, i, &inputs[i]));
  std::vector<int64_t> shape = shape_of(api, inputs[kX]);
  if (shape.empty() || shape.back() != k_) fail("x is " + text(shape) + ", expected a last dimension of " + std::to_string(k_));
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

// The shape of x with its last dimension replaced by N. Shape inference is not handed the function table.
const Api* g_api = nullptr;

void infer_shape(const Api& api, ShapeInferContext* context) {
  TensorInfo* x = nullptr;
  check(api.inferred_input(context, kX, &x));
  size_t rank = 0, got = 0;
  check(api.dimension_count(x, &rank));
  const OpAttribute* attribute = nullptr;
  check(api.inferred_attribute(context, "N", &attribute));
  int64_t n = 0;
  check(api.read_attribute(attribute, AttributeType::kInt, &n, sizeof n, &got));
  if (rank == 0) throw std::invalid_argument("ditpress: x of a QLinear node is a scalar, expected [..., K]");
  std::vector<int64_t> shape(rank);
  std::vector<const char*> names(rank, "");
  check(api.dimensions(x, shape.data(), rank));
  check(api.symbolic_dimensions(x, names.data(), rank));
  shape.back() = n;
  names.back() = "";
  TensorInfo* y = nullptr;
  check(api.create_tensor_info(&y));
  Status* status = api.set_element_type(y, Element::kFloat);
  if (!status) status = api.set_dimensions(y, shape.data(), rank);
  if (!status) status = api.set_symbolic_dimensions(y, names.data(), rank);
  if (!status) status = api.set_inferred_output(context, 0, y);
  api.release_tensor_info(y);
  check(status);
}

const Op& self(const CustomOp* op) { return *static_cast<const Op*>(op); }

Op::Op(const char* name_, int bits_, Activation activation_, Element scale_)
    : CustomOp{}, op_name(name_), bits(bits_), activation(activation_), scale(scale_) {
  version = kApiVersion;
  name = [](const CustomOp* op) { return self(op).op_name; };
  execution_provider = [](const CustomOp*) -> const char* { return nullptr; };
  input_count = [](const CustomOp*) { return kInputs; };
  input_type = [](const CustomOp* op, size_t i) {
    return i == kCodes ? Element::kUInt8 : i == kScale ? self(op).scale : i == kCodebook ? Element::kInt8 : Element::kFloat;
  };
  output_count = [](const CustomOp*) -> size_t { return 1; };
  output_type = [](const CustomOp*, size_t) { return Element::kFloat; };
  input_presence = output_presence = [](const CustomOp*, size_t) { return Presence::kRequired; };
  input_memory = [](const CustomOp*, size_t) { return Memory::kDefault; };
  variadic_input_min = variadic_input_homogeneous = [](const CustomOp*) { return 0; };
  variadic_output_min = variadic_output_homogeneous = [](const CustomOp*) { return 0; };
  create_kernel_v2 = [](const CustomOp* op, const Table* table, const KernelInfo* info, void** kernel) {
    const Api api{table};
    return guard(api, [&] { *kernel = new Kernel(self(op), api, info); });
  };
  compute_v2 = [](void* kernel, KernelContext* context) {
    Kernel& k = *static_cast<Kernel*>(kernel);
    return guard(k.api, [&] { k.compute(context); });
  };
  destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  CustomOp::infer_shape = [](const CustomOp*, ShapeInferContext* context) {
    return guard(*g_api, [&] { ditpress::infer_shape(*g_api, context); });
  };
  start_version = [](const CustomOp*) { return 1; };
  end_version = [](const CustomOp*) { return 0x7fffffff; };
}

void register_ops(const Api& api, SessionOptions* options) {
  // One op name has a descriptor for each type of scale. Descriptors and domain must outlive all sessions.
  static const Op ops[] = {
      {"QLinear4A8", 4, Activation::kInt8, Element::kFloat}, {"QLinear4A8", 4, Activation::kInt8, Element::kFloat16},
      {"QLinear8A8", 8, Activation::kInt8, Element::kFloat}, {"QLinear8A8", 8, Activation::kInt8, Element::kFloat16},
      {"QLinear4", 4, Activation::kNone, Element::kFloat},   {"QLinear4", 4, Activation::kNone, Element::kFloat16},
      {"QLinear8", 8, Activation::kNone, Element::kFloat},   {"QLinear8", 8, Activation::kNone, Element::kFloat16},
  };
  static std::mutex mutex;
  static CustomOpDomain* domain = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!domain) {
    CustomOpDomain* created = nullptr;
    check(api.create_domain("ditpress", &created));
    for (const Op& op : ops)
      if (Status* status = api.domain_add(created, &op)) {
        api.release_domain(created);
        throw Failed{status};
      }
    domain = created;
  }
  check(api.add_domain(options, domain));
}

}  // namespace
}  // namespace ditpress

// What ONNX Runtime looks for in a custom-op library. Registers nothing, so that the functions inside a model take over,
// under DITPRESS_ISA=reference and on a CPU that would only get the slow portable path (unless DITPRESS_ISA asks for it).
extern "C" __attribute__((visibility("default"))) ditpress::ort::Status* RegisterCustomOps(
    ditpress::ort::SessionOptions* options, const ditpress::ort::ApiBase* base) {
  using namespace ditpress;
  int major = 0, minor = 0;
  const bool known = std::sscanf(base->version_string(), "%d.%d", &major, &minor) == 2;
  if (!known || (major == 1 && minor < static_cast<int>(ort::kApiVersion))) {
    const ort::Api oldest{base->get_api(1)};
    const std::string message = std::string("ditpress needs ONNX Runtime 1.17 or newer, this is ") + base->version_string();
    return oldest.create_status(ort::Error::kNotImplemented, message.c_str());
  }
  static const ort::Api api{base->get_api(ort::kApiVersion)};
  g_api = &api;
  return guard(api, [&] {
    const Kernels* kernels = default_kernels();
    const char* forced = std::getenv("DITPRESS_ISA");
    if (!kernels || (kernels->isa == Isa::kPortable && !(forced && *forced))) return;
    register_ops(api, options);
  });
}
