// The ops of domain "ditpress" for ONNX Runtime.
#include <cstdio>
#include <cstdlib>
#include <deque>
#include <mutex>

#include "../isa.h"
#include "attention.h"
#include "linear.h"

namespace ditpress::ort {
namespace {

// Shape inference is not handed the function table.
const Api* g_api = nullptr;

// Reads an int or ints attribute of a node in shape inference; false when it is absent.
bool inferred(const Api& api, ShapeInferContext* context, const char* name, AttributeType type, int64_t* values,
              size_t room, size_t* count) {
  const OpAttribute* attribute = nullptr;
  size_t bytes = 0;
  Status* status = api.inferred_attribute(context, name, &attribute);
  if (!status && attribute) status = api.read_attribute(attribute, type, values, room * sizeof(int64_t), &bytes);
  if (status) api.release_status(status);
  *count = bytes / sizeof(int64_t);
  return !status && attribute;
}

// The shape of x, its last dimension replaced when `last` is not 0.
void infer(const Api& api, ShapeInferContext* context, size_t output, int64_t last) {
  TensorInfo* x = nullptr;
  check(api.inferred_input(context, 0, &x));
  size_t rank = 0;
  check(api.dimension_count(x, &rank));
  if (rank == 0) throw std::invalid_argument("ditpress: the first input of a node is a scalar, expected [..., K]");
  Shape shape(rank);
  std::vector<const char*> names(rank, "");
  check(api.dimensions(x, shape.data(), rank));
  check(api.symbolic_dimensions(x, names.data(), rank));
  if (last) {
    shape.back() = last;
    names.back() = "";
  }
  TensorInfo* y = nullptr;
  check(api.create_tensor_info(&y));
  Status* status = api.set_element_type(y, Element::kFloat);
  if (!status) status = api.set_dimensions(y, shape.data(), rank);
  if (!status) status = api.set_symbolic_dimensions(y, names.data(), rank);
  if (!status) status = api.set_inferred_output(context, output, y);
  api.release_tensor_info(y);
  check(status);
}

Status* infer_linear(const CustomOp*, ShapeInferContext* context) {
  return guard(*g_api, [&] {
    int64_t columns[16];
    size_t count = 0;
    if (!inferred(*g_api, context, "splits", AttributeType::kInts, columns, 16, &count) || count == 0) {
      if (!inferred(*g_api, context, "N", AttributeType::kInt, columns, 1, &count)) return;
      count = 1;
    }
    for (size_t i = 0; i < count; ++i) infer(*g_api, context, i, columns[i]);
  });
}

Status* infer_attention(const CustomOp*, ShapeInferContext* context) {
  return guard(*g_api, [&] { infer(*g_api, context, 0, 0); });
}

// Descriptors and domain must outlive all sessions. One op name has a descriptor for each type of scale.
std::deque<LinearOp> linear_ops() {
  struct Name {
    const char* name;
    int entries, vector_length;
    bool tables;
  };
  constexpr Name codings[] = {{"8", 256, 1, false}, {"4", 16, 1, false},      {"4M", 16, 1, true},  {"2", 4, 1, false},
                              {"T", 3, 1, false},   {"V8x4", 256, 4, false}, {"V6x2", 64, 2, false}};
  constexpr const char* activations[] = {"", "A8", "A4", "U4", "F4", "F8"};  // in the order of enum Activation
  static std::deque<std::string> names;  // which the descriptors point at
  std::deque<LinearOp> ops;
  for (const Name& coding : codings)
    for (int32_t a = 0; a < 6; ++a) {
      names.push_back(std::string("QLinear") + coding.name + activations[a]);
      for (const Element scale : {Element::kFloat, Element::kFloat16})
        ops.emplace_back(names.back().c_str(), coding.entries, coding.vector_length, coding.tables,
                         static_cast<Activation>(a), scale);
    }
  for (LinearOp& op : ops) op.infer_shape = infer_linear;
  return ops;
}

AttentionOp attention_op() {
  AttentionOp op;
  op.infer_shape = infer_attention;
  return op;
}

void register_ops(const Api& api, SessionOptions* options) {
  static const std::deque<LinearOp> linear = linear_ops();
  static const AttentionOp attention = attention_op();
  static std::mutex mutex;
  static CustomOpDomain* domain = nullptr;
  const std::lock_guard<std::mutex> lock(mutex);
  if (!domain) {
    CustomOpDomain* created = nullptr;
    check(api.create_domain("ditpress", &created));
    Status* status = api.domain_add(created, &attention);
    for (const LinearOp& op : linear)
      if (!status) status = api.domain_add(created, &op);
    if (status) {
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
    if (!kernels || (!kernels->accelerated && !(forced && *forced))) return;
    ort::register_ops(api, options);
  });
}
