#include "isa.h"

#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "portable/kernels.h"
#ifdef DITPRESS_X86
#include <cpuid.h>

#include "avx2/kernels.h"
#include "avx512/kernels.h"
#include "avxvnni/kernels.h"
#endif
#ifdef DITPRESS_NEON
#if defined(__linux__)
#include <sys/auxv.h>
#endif

#include "neon/kernels.h"
#endif

namespace ditpress {
namespace {

// These look at the operating system's support for the registers too, not only at the CPU's.
#ifdef DITPRESS_X86
bool has_avx512vnni() {
  return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
         __builtin_cpu_supports("avx512vl") && __builtin_cpu_supports("avx512dq") &&
         __builtin_cpu_supports("avx512vnni");
}

bool has_avx2() { return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma"); }

Kernels best_avx512() {
  return avx512_kernels(__builtin_cpu_supports("avx512vbmi"), __builtin_cpu_supports("avx512bf16"));
}
#endif

#ifdef DITPRESS_AVXVNNI
bool has_avxvnni() {
  // Asked of the CPU itself: not every compiler's __builtin_cpu_supports knows the name.
  constexpr unsigned kAvxVnni = 1u << 4;
  unsigned eax = 0, ebx, ecx, edx;
  return has_avx2() && __get_cpuid_count(7, 1, &eax, &ebx, &ecx, &edx) && (eax & kAvxVnni);
}
#endif

#ifdef DITPRESS_NEON
bool has_neon_dot() {
#if defined(__linux__)
  constexpr unsigned long kDotProduct = 1ul << 20;  // HWCAP_ASIMDDP
  return getauxval(AT_HWCAP) & kDotProduct;
#else
  return true;  // every Apple CPU that runs this
#endif
}
#endif

bool always() { return true; }

struct Path {
  const char* name;
  bool (*supported)();  // null: not in this build
  Kernels (*kernels)();
};

// Best first.
constexpr Path kPaths[] = {
#ifdef DITPRESS_X86
    {"avx512vnni", has_avx512vnni, best_avx512},
#else
    {"avx512vnni", nullptr, nullptr},
#endif
#ifdef DITPRESS_AVXVNNI
    {"avxvnni", has_avxvnni, avxvnni_kernels},
#else
    {"avxvnni", nullptr, nullptr},
#endif
#ifdef DITPRESS_X86
    {"avx2", has_avx2, avx2_kernels},
#else
    {"avx2", nullptr, nullptr},
#endif
#ifdef DITPRESS_NEON
    {"neon", has_neon_dot, neon_kernels},
#else
    {"neon", nullptr, nullptr},
#endif
    {"portable", always, portable_kernels},
};
constexpr int kPathCount = sizeof kPaths / sizeof kPaths[0];

const Kernels& kernels_of(int path) {
  // All that run here are made at the first use: references to them stay good. Making others could already take their
  // instructions.
  static const struct Made {
    Made() {
      for (int i = 0; i < kPathCount; ++i)
        if (kPaths[i].supported && kPaths[i].supported()) kernels[i] = kPaths[i].kernels();
    }
    Kernels kernels[kPathCount] = {};
  } made;
  return made.kernels[path];
}

}  // namespace

const Kernels& kernels_named(const char* name) {
  std::string known;
  for (int i = 0; i < kPathCount; ++i) {
    if (std::strcmp(name, kPaths[i].name) == 0) {
      if (kPaths[i].supported && kPaths[i].supported()) return kernels_of(i);
      throw std::invalid_argument(std::string("instruction set '") + name +
                                  "' is not supported by this CPU, unset DITPRESS_ISA or use portable");
    }
    known += std::string(kPaths[i].name) + (i + 1 < kPathCount ? ", " : " or reference");
  }
  throw std::invalid_argument(std::string("instruction set '") + name + "' is unknown, expected " + known);
}

const Kernels* default_kernels() {
  const char* forced = std::getenv("DITPRESS_ISA");
  if (forced && *forced) return std::strcmp(forced, "reference") == 0 ? nullptr : &kernels_named(forced);
  int best = 0;
  while (!(kPaths[best].supported && kPaths[best].supported())) ++best;
  return &kernels_of(best);
}

}  // namespace ditpress
