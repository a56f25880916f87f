// Threads of the host. The library has none of its own: beside torch's or ONNX Runtime's pool they would only compete.
#pragma once

#include <atomic>
#include <cstdint>
#include <new>

namespace ditpress {

using Task = void (*)(void* data, int64_t index);

// Runs task(data, i) once for every i in [0, count), in any order, and returns when all are done.
struct Pool {
  void (*run)(void* host, int64_t count, Task task, void* data);
  void* host;
  int threads;  // about how many tasks run at the same time
};

// On the calling thread.
Pool serial_pool();

// On `threads` threads of the OpenMP runtime found by use_openmp; serial_pool when there is none.
Pool openmp_pool(int threads);

// Take an OpenMP runtime that is already loaded: the shared object at `path`, or with nullptr the first in the process.
bool use_openmp(const char* path);

// function(w) for every w in [0, count): one task each, so that with count = pool.threads a host that has as many threads
// runs them all at the same time, and likely the same w on the same thread from call to call. A task that fails (only by
// want of memory) makes the whole fail.
template <class F>
void parallel_workers(const Pool& pool, int64_t count, const F& function) {
  struct State {
    const F& function;
    std::atomic<bool> failed{false};
  } state{function};
  const Task task = [](void* data, int64_t worker) {
    State& s = *static_cast<State*>(data);
    try {
      s.function(worker);
    } catch (...) {
      s.failed.store(true, std::memory_order_relaxed);
    }
  };
  pool.run(pool.host, count, task, &state);
  if (state.failed.load(std::memory_order_relaxed)) throw std::bad_alloc();
}

// function(i, upcoming) for every i in [0, count), `upcoming` being what the same thread will probably do next, or -1.
// Threads take indices as they get ready: right for any split that the host makes.
template <class F>
void parallel_for(const Pool& pool, int64_t count, const F& function) {
  std::atomic<int64_t> next{0};
  parallel_workers(pool, pool.threads < count ? pool.threads : count, [&](int64_t) {
    for (int64_t i; (i = next.fetch_add(1, std::memory_order_relaxed)) < count;)
      function(i, i + pool.threads < count ? i + pool.threads : -1);
  });
}

}  // namespace ditpress
