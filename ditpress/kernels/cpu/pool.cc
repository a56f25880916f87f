#include "pool.h"

#if !defined(_WIN32)
#include <dlfcn.h>
#endif

namespace ditpress {
namespace {

// Entry point of every parallel region that gcc compiles; LLVM's and Intel's runtimes offer it too.
using GompParallel = void (*)(void (*body)(void*), void* data, unsigned threads, unsigned flags);
std::atomic<GompParallel> g_parallel{nullptr};

void run_serial(void*, int64_t count, Task task, void* data) {
  for (int64_t i = 0; i < count; ++i) task(data, i);
}

struct Region {
  std::atomic<int64_t> next{0};
  int64_t count;
  Task task;
  void* data;
};

// Works with any number of threads: inside another parallel region the runtime may give only one.
void region_body(void* p) {
  Region& region = *static_cast<Region*>(p);
  for (int64_t i; (i = region.next.fetch_add(1, std::memory_order_relaxed)) < region.count;)
    region.task(region.data, i);
}

void run_openmp(void* host, int64_t count, Task task, void* data) {
  if (count <= 1) return run_serial(nullptr, count, task, data);
  const int64_t threads = static_cast<int64_t>(reinterpret_cast<intptr_t>(host));
  Region region;
  region.count = count;
  region.task = task;
  region.data = data;
  g_parallel.load()(region_body, &region, static_cast<unsigned>(threads < count ? threads : count), 0);
}

}  // namespace

int64_t& last_worker() {
  static thread_local int64_t worker = -1;
  return worker;
}

Pool serial_pool() { return {run_serial, nullptr, 1}; }

Pool openmp_pool(int threads) {
  if (threads <= 1 || !g_parallel.load()) return serial_pool();
  return {run_openmp, reinterpret_cast<void*>(static_cast<intptr_t>(threads)), threads};
}

bool use_openmp(const char* path) {
#if defined(_WIN32)
  (void)path;
  return false;
#else
  // RTLD_NOLOAD: never a second runtime beside the host's. The handle is kept, so the runtime cannot go away.
  void* library = path ? dlopen(path, RTLD_LAZY | RTLD_NOLOAD) : RTLD_DEFAULT;
  if (path && !library) return false;
  const auto found = reinterpret_cast<GompParallel>(dlsym(library, "GOMP_parallel"));
  if (!found) {
    if (path) dlclose(library);
    return false;
  }
  g_parallel.store(found);
  return true;
#endif
}

}  // namespace ditpress
