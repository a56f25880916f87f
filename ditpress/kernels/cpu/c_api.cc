// The library as C sees it. No exception leaves it: functions return null or a non-zero status, and
// ditpress_last_error() tells the reason to the thread that called.
#include <exception>
#include <string>

#include "isa.h"
#include "weight.h"

namespace {

constexpr int32_t kAbiVersion = 1;

thread_local std::string t_error;

// The result of `function`, or `failed` with the message kept.
template <class R, class F>
R guard(R failed, F&& function) noexcept {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    t_error = "out of memory";
  } catch (const std::exception& e) {
    t_error = e.what();
  } catch (...) {
    t_error = "unknown error";
  }
  return failed;
}

}  // namespace

// Changes whenever a signature below does.
DITPRESS_EXPORT int32_t ditpress_abi_version() { return kAbiVersion; }

// Message of the last call on this thread that failed; empty before the first.
DITPRESS_EXPORT const char* ditpress_last_error() { return t_error.c_str(); }

// "avx512vnni", "avx2", "portable" or "reference" (DITPRESS_ISA, else the best of this CPU); null on error.
DITPRESS_EXPORT const char* ditpress_isa() {
  return guard<const char*>(nullptr, [] {
    const ditpress::Kernels* kernels = ditpress::default_kernels();
    return kernels ? kernels->name : "reference";
  });
}

// Take the threads of an OpenMP runtime that is already loaded: the shared object at `path`, null for the first in
// the process. 1 when found, else 0: then ditpress_weight_run works on the calling thread.
DITPRESS_EXPORT int32_t ditpress_use_openmp(const char* path) { return ditpress::use_openmp(path) ? 1 : 0; }

// Repack a weight (row-major `codes` uint8 [n][ceil(k * bits / 8)], low nibble first; `scale` [n][groups] float or
// half; `codebook` int8 [2**bits]) for the named instruction set. Null on error. The inputs are not needed afterwards.
DITPRESS_EXPORT void* ditpress_weight_create(const uint8_t* codes, int64_t n, int64_t k, int32_t bits,
                                             const void* scale, int32_t scale_is_half, int64_t groups,
                                             const int8_t* codebook, int32_t int8_activations, const char* isa) {
  return guard<void*>(nullptr, [&]() -> void* {
    const auto activation = int8_activations ? ditpress::Activation::kInt8 : ditpress::Activation::kNone;
    const ditpress::WeightSource source{codes, n, k, bits, scale, scale_is_half != 0, groups, codebook, activation};
    return new ditpress::Weight(source, ditpress::kernels_named(isa));
  });
}

DITPRESS_EXPORT int64_t ditpress_weight_bytes(const void* weight) {
  return static_cast<const ditpress::Weight*>(weight)->bytes();
}

DITPRESS_EXPORT void ditpress_weight_destroy(void* weight) { delete static_cast<ditpress::Weight*>(weight); }

// y [m][n] = x [m][k] * weight + bias [n] (null: none), on up to `threads` threads. 0 on success.
DITPRESS_EXPORT int32_t ditpress_weight_run(const void* weight, const float* x, int64_t m, const float* bias, float* y,
                                            int32_t threads) {
  return guard<int32_t>(1, [&] {
    static_cast<const ditpress::Weight*>(weight)->run(x, m, bias, y, ditpress::openmp_pool(threads));
    return 0;
  });
}
