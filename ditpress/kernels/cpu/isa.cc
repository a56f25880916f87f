#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "portable/kernels.h"
#ifdef DITPRESS_X86
#include "avx2/kernels.h"
#include "avx512/kernels.h"
#endif

namespace ditpress {
namespace {

// These look at the operating system's support for the registers too, not only at the CPU's.
bool has_avx2() {
#ifdef DITPRESS_X86
  return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
#else
  return false;
#endif
}

bool has_avx512vnni() {
#ifdef DITPRESS_X86
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
#else
  return false;
#endif
}

}  // namespace

const Kernels& kernels_named(const char* name) {
  static const Kernels portable = portable_kernels();
  if (std::strcmp(name, portable.name) == 0) return portable;
  const bool avx512 = std::strcmp(name, "avx512vnni") == 0, avx2 = std::strcmp(name, "avx2") == 0;
  if (!avx512 && !avx2)
    throw std::invalid_argument(std::string("instruction set '") + name +
                                "' is unknown, expected avx512vnni, avx2, portable or reference");
#ifdef DITPRESS_X86
  static const Kernels with_avx2 = avx2_kernels();
  static const Kernels with_avx512 =
      avx512_kernels(__builtin_cpu_supports("avx512vbmi"), __builtin_cpu_supports("avx512bf16"));
  if (avx512 && has_avx512vnni()) return with_avx512;
  if (avx2 && has_avx2()) return with_avx2;
#endif
  throw std::invalid_argument(std::string("instruction set '") + name +
                              "' is not supported by this CPU, unset DITPRESS_ISA or use portable");
}

const Kernels* default_kernels() {
  const char* forced = std::getenv("DITPRESS_ISA");
  if (forced && *forced) return std::strcmp(forced, "reference") == 0 ? nullptr : &kernels_named(forced);
  return &kernels_named(has_avx512vnni() ? "avx512vnni" : has_avx2() ? "avx2" : "portable");
}

}  // namespace ditpress
