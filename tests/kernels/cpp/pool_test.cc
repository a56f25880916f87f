// Work on the threads of a host.
#include <atomic>
#include <condition_variable>
#include <mutex>
#include <thread>

#include "support.h"

namespace selftest {
namespace {

using namespace ditpress;

// Two threads that live on, as a host's do, the calling one and another. Which of them gets which index changes from
// call to call.
class TwoThreads {
 public:
  TwoThreads() : other_([this] { serve(); }) {}
  ~TwoThreads() {
    hand_over(-1);
    other_.join();
  }
  Pool pool() { return {run, this, 2}; }

 private:
  static void run(void* host, int64_t count, Task task, void* data) {
    TwoThreads& self = *static_cast<TwoThreads*>(host);
    if (count != 2) std::abort();
    self.task_ = task;
    self.data_ = data;
    const int64_t own = self.calls_++ % 2;
    self.hand_over(1 - own);
    task(data, own);
    std::unique_lock<std::mutex> lock(self.mutex_);
    self.changed_.wait(lock, [&] { return !self.busy_; });
  }
  void hand_over(int64_t index) {
    const std::lock_guard<std::mutex> lock(mutex_);
    index_ = index;
    busy_ = true;
    changed_.notify_all();
  }
  void serve() {
    std::unique_lock<std::mutex> lock(mutex_);
    for (;;) {
      changed_.wait(lock, [this] { return busy_; });
      if (index_ < 0) return;
      lock.unlock();
      task_(data_, index_);
      lock.lock();
      busy_ = false;
      changed_.notify_all();
    }
  }
  std::mutex mutex_;
  std::condition_variable changed_;
  Task task_ = nullptr;
  void* data_ = nullptr;
  int64_t index_ = 0;
  int calls_ = 0;
  bool busy_ = false;
  std::thread other_;
};

}  // namespace

void test_pool() {
  for (int threads : {1, 2, 3, 7})
    for (int64_t count : {0, 1, 2, 6, 50}) {
      std::vector<std::atomic<int>> seen(static_cast<size_t>(count));
      std::atomic<bool> good{true};
      parallel_for(thread_pool(threads), count, [&](int64_t i, int64_t upcoming) {
        ++seen[static_cast<size_t>(i)];
        if (upcoming != -1 && upcoming != i + 1) good = false;
      });
      for (const std::atomic<int>& times : seen) good = good && times == 1;
      check(good, std::to_string(count) + " indices on " + std::to_string(threads) + " threads, each once");
    }
  // A thread stays the worker that it was, whatever index the host gives it.
  TwoThreads host;
  std::thread::id before[2], now[2];
  bool same = true;
  for (int call = 0; call < 8; ++call) {
    std::atomic<int> here{0};
    parallel_workers(host.pool(), 2, [&](int64_t w) {
      now[w] = std::this_thread::get_id();
      for (++here; here < 2;) std::this_thread::yield();  // both at once: neither takes the other's turn
    });
    for (int w = 0; w < 2; ++w) {
      same &= call == 0 || now[w] == before[w];
      before[w] = now[w];
    }
  }
  check(same && now[0] != now[1], "workers keep their threads");
  bool thrown = false;
  try {
    parallel_workers(thread_pool(2), 2, [](int64_t w) {
      if (w) throw std::bad_alloc();
    });
  } catch (const std::bad_alloc&) {
    thrown = true;
  }
  check(thrown, "a worker that fails makes the whole fail");
}

}  // namespace selftest
