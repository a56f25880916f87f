// One QLinear node in ONNX Runtime.
#pragma once

#include <exception>
#include <memory>
#include <new>
#include <stdexcept>
#include <string>
#include <vector>

#include "ort_abi.h"
#include "weight.h"

namespace ditpress::ort {

constexpr size_t kX = 0, kCodes = 1, kScale = 2, kCodebook = 3, kBias = 4, kInputs = 5;

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

// What the ops of the domain differ in.
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

}  // namespace ditpress::ort
