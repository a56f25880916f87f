// The small part of the ONNX Runtime C ABI that a CPU custom-op library touches, in our own words, so that building
// needs no ONNX Runtime headers and one binary runs on every runtime from 1.17 on.
//
// The runtime's function table only ever grows at its end: a function keeps its slot for ever. It is treated here as an
// array of pointers, and each slot in use is named once, with its signature. Calling a slot beyond the runtime's table
// is undefined; all slots below exist since API version 17, which the library asks for.
#pragma once

#include <cstddef>
#include <cstdint>

namespace ditpress::ort {

constexpr uint32_t kApiVersion = 17;

// Opaque objects of the runtime.
struct Table;
struct Status;  // null means success
struct SessionOptions;
struct CustomOpDomain;
struct KernelInfo;         // a node with its attributes and constant inputs, while its kernel is made
struct KernelContext;      // one execution of a node
struct ShapeInferContext;
struct Value;
struct TensorInfo;         // element type and shape
struct OpAttribute;

enum class Error : int32_t { kFail = 1, kInvalidArgument = 2, kRuntimeException = 6, kNotImplemented = 9 };
enum class Element : int32_t { kFloat = 1, kUInt8 = 2, kInt8 = 3, kFloat16 = 10 };
enum class Presence : int32_t { kRequired = 0, kVariadic = 2 };
enum class Memory : int32_t { kDefault = 0 };
enum class AttributeType : int32_t { kInt = 1, kInts = 2 };

// What RegisterCustomOps is given.
struct ApiBase {
  const Table* (*get_api)(uint32_t version);  // null when the runtime is older than `version`
  const char* (*version_string)();            // "1.Y.Z": Y is the API version
};

// Description of one op, laid out as version 17 of the ABI has it. The runtime reads younger members only where
// `version` says that they are there.
struct CustomOp {
  uint32_t version;
  void* (*create_kernel)(const CustomOp*, const Table*, const KernelInfo*);  // unused: create_kernel_v2 wins
  const char* (*name)(const CustomOp*);
  const char* (*execution_provider)(const CustomOp*);  // null result: CPU
  Element (*input_type)(const CustomOp*, size_t);
  size_t (*input_count)(const CustomOp*);
  Element (*output_type)(const CustomOp*, size_t);
  size_t (*output_count)(const CustomOp*);
  void (*compute)(void* kernel, KernelContext*);  // unused: compute_v2 wins
  void (*destroy_kernel)(void* kernel);
  Presence (*input_presence)(const CustomOp*, size_t);
  Presence (*output_presence)(const CustomOp*, size_t);
  Memory (*input_memory)(const CustomOp*, size_t);
  int (*variadic_input_min)(const CustomOp*);
  int (*variadic_input_homogeneous)(const CustomOp*);
  int (*variadic_output_min)(const CustomOp*);
  int (*variadic_output_homogeneous)(const CustomOp*);
  Status* (*create_kernel_v2)(const CustomOp*, const Table*, const KernelInfo*, void** kernel);
  Status* (*compute_v2)(void* kernel, KernelContext*);
  Status* (*infer_shape)(const CustomOp*, ShapeInferContext*);
  int (*start_version)(const CustomOp*);
  int (*end_version)(const CustomOp*);
};
static_assert(sizeof(void*) == 8, "written for 64-bit systems");
static_assert(offsetof(CustomOp, input_presence) == 80 && offsetof(CustomOp, create_kernel_v2) == 136 &&
                  offsetof(CustomOp, end_version) == 168 && sizeof(CustomOp) == 176,
              "layout of the custom-op descriptor");

// One typed entry of the table.
template <int Slot, class Signature>
struct Entry;
template <int Slot, class Result, class... Parameters>
struct Entry<Slot, Result(Parameters...)> {
  const Table* table;
  Result operator()(Parameters... arguments) const {
    using Function = Result (*)(Parameters...);
    return reinterpret_cast<Function>(reinterpret_cast<void* const*>(table)[Slot])(arguments...);
  }
};

struct Api {
  const Table* table;

#define DITPRESS_SLOT(slot, name, ...) \
  Entry<slot, __VA_ARGS__> name { table }
  DITPRESS_SLOT(0, create_status, Status*(Error, const char*));
  DITPRESS_SLOT(26, create_domain, Status*(const char*, CustomOpDomain**));
  DITPRESS_SLOT(27, domain_add, Status*(CustomOpDomain*, const CustomOp*));
  DITPRESS_SLOT(28, add_domain, Status*(SessionOptions*, CustomOpDomain*));
  DITPRESS_SLOT(51, tensor_data, Status*(Value*, void**));
  DITPRESS_SLOT(57, create_tensor_info, Status*(TensorInfo**));
  DITPRESS_SLOT(58, set_element_type, Status*(TensorInfo*, Element));
  DITPRESS_SLOT(59, set_dimensions, Status*(TensorInfo*, const int64_t*, size_t));
  DITPRESS_SLOT(60, element_type, Status*(const TensorInfo*, Element*));
  DITPRESS_SLOT(61, dimension_count, Status*(const TensorInfo*, size_t*));
  DITPRESS_SLOT(62, dimensions, Status*(const TensorInfo*, int64_t*, size_t));
  DITPRESS_SLOT(63, symbolic_dimensions, Status*(const TensorInfo*, const char**, size_t));
  DITPRESS_SLOT(65, tensor_info, Status*(const Value*, TensorInfo**));  // to be released
  DITPRESS_SLOT(85, float_attribute, Status*(const KernelInfo*, const char*, float*));
  DITPRESS_SLOT(86, int_attribute, Status*(const KernelInfo*, const char*, int64_t*));
  DITPRESS_SLOT(87, text_attribute, Status*(const KernelInfo*, const char*, char*, size_t*));  // size counts the zero
  DITPRESS_SLOT(88, input_count, Status*(const KernelContext*, size_t*));
  DITPRESS_SLOT(90, input, Status*(const KernelContext*, size_t, const Value**));
  DITPRESS_SLOT(91, output, Status*(KernelContext*, size_t, const int64_t*, size_t, Value**));
  DITPRESS_SLOT(89, output_count, Status*(const KernelContext*, size_t*));
  DITPRESS_SLOT(93, release_status, void(Status*));
  DITPRESS_SLOT(99, release_tensor_info, void(TensorInfo*));
  DITPRESS_SLOT(101, release_domain, void(CustomOpDomain*));
  DITPRESS_SLOT(163, ints_attribute, Status*(const KernelInfo*, const char*, int64_t*, size_t*));
  DITPRESS_SLOT(244, node_name, Status*(const KernelInfo*, char*, size_t*));  // size counts the final zero
  DITPRESS_SLOT(249, constant_input, Status*(const KernelInfo*, size_t, int*, const Value**));
  DITPRESS_SLOT(268, inferred_input, Status*(const ShapeInferContext*, size_t, TensorInfo**));  // borrowed
  DITPRESS_SLOT(269, inferred_attribute, Status*(const ShapeInferContext*, const char*, const OpAttribute**));
  DITPRESS_SLOT(270, set_inferred_output, Status*(const ShapeInferContext*, size_t, const TensorInfo*));
  DITPRESS_SLOT(271, set_symbolic_dimensions, Status*(TensorInfo*, const char**, size_t));
  DITPRESS_SLOT(272, read_attribute, Status*(const OpAttribute*, AttributeType, void*, size_t, size_t*));
  DITPRESS_SLOT(274, parallel_for, Status*(const KernelContext*, void (*)(void*, size_t), size_t, size_t, void*));
#undef DITPRESS_SLOT
};

}  // namespace ditpress::ort
