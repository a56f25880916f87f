// What every op for ONNX Runtime is made of: descriptors, nodes, tensors and errors.
#pragma once

#include <exception>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "../pool.h"
#include "abi.h"

namespace ditpress::ort {

// A failed call of the runtime on its way to the boundary, where the status is handed back as it is.
struct Failed {
  Status* status;
};

inline void check(Status* status) {
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

using Shape = std::vector<int64_t>;

std::string text(const Shape& shape);
Shape shape_of(const Api& api, const Value* value);
int64_t count_of(const Shape& shape);

template <class T>
T* data_of(const Api& api, const Value* value) {
  void* data = nullptr;
  check(api.tensor_data(const_cast<Value*>(value), &data));
  return static_cast<T*>(data);
}

// A node while its kernel lives: attributes, and errors that say which node they come from.
class Node {
 public:
  Node(const char* op, const Api& api, const KernelInfo* info);
  const Api api;

 protected:
  [[noreturn]] void fail(const std::string& message) const {
    throw std::invalid_argument(op_ + " node '" + name_ + "': " + message);
  }
  // Attributes, `absent` where the node has none of that name and type.
  int64_t int_attribute(const KernelInfo* info, const char* name, int64_t absent) const;
  float float_attribute(const KernelInfo* info, const char* name, float absent) const;
  std::string text_attribute(const KernelInfo* info, const char* name) const;  // empty when absent
  Shape ints_attribute(const KernelInfo* info, const char* name) const;        // empty when absent
  void expect(const Value* value, const char* what, const Shape& shape) const;
  // `count` rows of `width` values, whatever the leading dimensions; the count.
  int64_t expect_rows(const Value* value, const char* what, int64_t width) const;

 private:
  bool present(Status* status) const;
  std::string op_, name_;
};

// ONNX Runtime's own threads for one execution of a node.
class Host {
 public:
  Host(const Api& api, const KernelContext* context) : api_(api), context_(context) {}
  Pool pool();
  void finish() const { check(status_); }

 private:
  static void run(void* host, int64_t count, Task task, void* data);
  const Api& api_;
  const KernelContext* context_;
  Status* status_ = nullptr;
};

// Fills in what all descriptors share. `Op` derives from CustomOp; its Kernel is made from (op, api, info).
template <class Op, class Kernel>
void describe(Op& op) {
  const CustomOp zero = {};
  static_cast<CustomOp&>(op) = zero;
  op.version = kApiVersion;
  op.name = [](const CustomOp* self) { return static_cast<const Op*>(self)->op_name; };
  op.execution_provider = [](const CustomOp*) -> const char* { return nullptr; };
  op.output_type = [](const CustomOp*, size_t) { return Element::kFloat; };
  op.input_memory = [](const CustomOp*, size_t) { return Memory::kDefault; };
  op.variadic_input_homogeneous = op.variadic_output_homogeneous = [](const CustomOp*) { return 1; };
  op.create_kernel_v2 = [](const CustomOp* self, const Table* table, const KernelInfo* info, void** kernel) {
    const Api api{table};
    return guard(api, [&] { *kernel = new Kernel(*static_cast<const Op*>(self), api, info); });
  };
  op.compute_v2 = [](void* kernel, KernelContext* context) {
    Kernel& k = *static_cast<Kernel*>(kernel);
    return guard(k.api, [&] { k.compute(context); });
  };
  op.destroy_kernel = [](void* kernel) { delete static_cast<Kernel*>(kernel); };
  op.start_version = [](const CustomOp*) { return 1; };
  op.end_version = [](const CustomOp*) { return 0x7fffffff; };
}

}  // namespace ditpress::ort
