// Threads of the host. The library has none of its own: beside torch's or ONNX Runtime's pool they would only compete.
#pragma once

#include <atomic>
#include <cstddef>
#include <cstdint>
#include <new>
#include <vector>

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

// Which worker the calling thread was last; -1: none yet.
int64_t& last_worker();

// function(w) for every w in [0, count), each on one thread. A thread gets the same w from call to call where it is free,
// whatever the host hands to whom: what it wrote as w lies in its cache. A task that fails (only by want of memory) makes
// the whole fail.
template <class F>
void parallel_workers(const Pool& pool, int64_t count, const F& function) {
  struct State {
    State(const F& f, int64_t n) : function(f), taken(static_cast<size_t>(n)) {}
    const F& function;
    std::vector<std::atomic<bool>> taken;
    std::atomic<bool> failed{false};
  } state{function, count};
  const Task task = [](void* data, int64_t index) {
    State& s = *static_cast<State*>(data);
    const int64_t count = static_cast<int64_t>(s.taken.size());
    int64_t& last = last_worker();
    int64_t worker = last >= 0 && last < count ? last : index;
    while (s.taken[static_cast<size_t>(worker)].exchange(true, std::memory_order_relaxed)) worker = (worker + 1) % count;
    last = worker;
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
// Every thread has a share of neighbouring indices, the same from call to call; then it helps with the others'.
template <class F>
void parallel_for(const Pool& pool, int64_t count, const F& function) {
  const int64_t workers = pool.threads < count ? pool.threads : count;
  struct alignas(64) Share {
    std::atomic<int64_t> next{0};
    int64_t end = 0;
  };
  std::vector<Share> shares(static_cast<size_t>(workers));
  for (int64_t w = 0; w < workers; ++w) {
    shares[static_cast<size_t>(w)].next = count * w / workers;
    shares[static_cast<size_t>(w)].end = count * (w + 1) / workers;
  }
  parallel_workers(pool, workers, [&](int64_t worker) {
    for (int64_t s = 0; s < workers; ++s) {
      Share& share = shares[static_cast<size_t>((worker + s) % workers)];
      for (int64_t i; (i = share.next.fetch_add(1, std::memory_order_relaxed)) < share.end;)
        function(i, i + 1 < share.end ? i + 1 : -1);
    }
  });
}

}  // namespace ditpress
