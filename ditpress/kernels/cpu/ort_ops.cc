// The ops of domain "ditpress" for ONNX Runtime: QLinear4A8 and QLinear8A8 (int8 activations), QLinear4 and QLinear8
// (weight-only). All compute `ditpress::qlinear`:
//   inputs      x float [..., K]; codes uint8 [N, ceil(K * bits / 8)]; scale float or float16 [N, K / group_size];
//               codebook int8 [2**bits]; bias float [N]
//   attributes  N, K, group_size (ints)
//   output      y float [..., N]
// Constant weights are repacked when the kernel is made and the pages they were mapped from are given back.
#include <cstdio>
#include <cstdlib>
#include <mutex>

#include "isa.h"
#include "ort_kernel.h"

namespace ditpress::ort {
namespace {

// The shape of x with its last dimension replaced by N. Shape inference is not handed the function table.
const Api* g_api = nullptr;

void infer_output_shape(const Api& api, ShapeInferContext* context) {
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

}  // namespace

Op::Op(const char* name_, int bits_, Activation activation_, Element scale_)
    : CustomOp{}, op_name(name_), bits(bits_), activation(activation_), scale(scale_) {
  version = kApiVersion;
  name = [](const CustomOp* op) { return self(op).op_name; };
  execution_provider = [](const CustomOp*) -> const char* { return nullptr; };
  input_count = [](const CustomOp*) { return kInputs; };
  input_type = [](const CustomOp* op, size_t i) {
    switch (i) {
      case kCodes: return Element::kUInt8;
      case kScale: return self(op).scale;
      case kCodebook: return Element::kInt8;
      default: return Element::kFloat;
    }
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
  infer_shape = [](const CustomOp*, ShapeInferContext* context) {
    return guard(*g_api, [&] { infer_output_shape(*g_api, context); });
  };
  start_version = [](const CustomOp*) { return 1; };
  end_version = [](const CustomOp*) { return 0x7fffffff; };
}

namespace {

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
}  // namespace ditpress::ort

// What ONNX Runtime looks for in a custom-op library. Registers nothing, so that the functions inside a model take
// over, under DITPRESS_ISA=reference and on a CPU that would only get the slow portable path (unless DITPRESS_ISA asks
// for it).
DITPRESS_EXPORT ditpress::ort::Status* RegisterCustomOps(ditpress::ort::SessionOptions* options,
                                                         const ditpress::ort::ApiBase* base) {
  using namespace ditpress;
  int major = 0, minor = 0;
  const bool known = std::sscanf(base->version_string(), "%d.%d", &major, &minor) == 2;
  if (!known || (major == 1 && minor < static_cast<int>(ort::kApiVersion))) {
    const ort::Api oldest{base->get_api(1)};
    const std::string version = base->version_string();
    const std::string message = "ditpress needs ONNX Runtime 1.17 or newer, this is " + version;
    return oldest.create_status(ort::Error::kNotImplemented, message.c_str());
  }
  static const ort::Api api{base->get_api(ort::kApiVersion)};
  ort::g_api = &api;
  return ort::guard(api, [&] {
    const Kernels* kernels = default_kernels();
    const char* forced = std::getenv("DITPRESS_ISA");
    if (!kernels || (kernels->isa == Isa::kPortable && !(forced && *forced))) return;
    ort::register_ops(api, options);
  });
}
