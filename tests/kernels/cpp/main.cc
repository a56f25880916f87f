// ditpress_selftest [NAME ...]: tests every instruction set that this CPU has; those named must be among them.
#include <stdexcept>
#include <thread>

#include "isa.h"
#include "support.h"

namespace selftest {
namespace {

int64_t g_checks = 0, g_failures = 0;

void run_threads(void*, int64_t count, ditpress::Task task, void* data) {
  std::vector<std::thread> threads;
  for (int64_t i = 0; i < count; ++i) threads.emplace_back(task, data, i);
  for (std::thread& thread : threads) thread.join();
}

}  // namespace

void check(bool good, const std::string& what) {
  ++g_checks;
  if (good) return;
  if (++g_failures <= 20) std::printf("  WRONG %s\n", what.c_str());
}

ditpress::Pool thread_pool(int threads) { return {run_threads, nullptr, threads}; }

int run(int argc, char** argv) {
  std::vector<std::string> required(argv + 1, argv + argc);
  test_pool();
  std::printf("pool: %lld checks, %lld wrong\n", static_cast<long long>(g_checks), static_cast<long long>(g_failures));
  for (const char* name : {"avx512vnni", "avxvnni", "avx2", "neon", "portable"}) {
    const ditpress::Kernels* kernels = nullptr;
    try {
      kernels = &ditpress::kernels_named(name);
    } catch (const std::invalid_argument&) {
      for (const std::string& needed : required)
        if (needed == name) check(false, needed + " cannot run here");
      continue;
    }
    const int64_t checks = g_checks, failures = g_failures;
    test_parts(*kernels);
    test_linear(*kernels);
    test_attention(*kernels);
    test_nearest(*kernels);
    test_scales(*kernels);
    std::printf("%s: %lld checks, %lld wrong\n", name, static_cast<long long>(g_checks - checks),
                static_cast<long long>(g_failures - failures));
  }
  return g_failures ? 1 : 0;
}

}  // namespace selftest

int main(int argc, char** argv) { return selftest::run(argc, argv); }
