// What the tests share.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cstdint>
#include <cstdio>
#include <cstdlib>
#include <cstring>
#include <random>
#include <string>
#include <vector>

#include "core.h"
#include "pool.h"

namespace selftest {

// Counts, and says what went wrong.
void check(bool good, const std::string& what);

void test_parts(const ditpress::Kernels& kernels);
void test_linear(const ditpress::Kernels& kernels);
void test_attention(const ditpress::Kernels& kernels);

// Threads that come and go with every call.
ditpress::Pool thread_pool(int threads);

// Memory that ends at a page that nobody may touch: reading or writing one value too many is a crash, also where a
// sanitizer does not look (masked loads, asm statements). The start lies as it comes.
template <class T>
class Guarded {
 public:
  explicit Guarded(int64_t count) : count_(count) {
    const size_t page = static_cast<size_t>(sysconf(_SC_PAGESIZE)), bytes = static_cast<size_t>(count) * sizeof(T);
    const size_t held = (bytes + page - 1) / page * page;
    length_ = held + page;
    base_ = mmap(nullptr, length_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_ANONYMOUS, -1, 0);
    if (base_ == MAP_FAILED || mprotect(static_cast<char*>(base_) + held, page, PROT_NONE)) std::abort();
    data_ = reinterpret_cast<T*>(static_cast<char*>(base_) + held - bytes);
  }
  explicit Guarded(const std::vector<T>& from) : Guarded(static_cast<int64_t>(from.size())) {
    std::copy(from.begin(), from.end(), data_);
  }
  Guarded(const Guarded&) = delete;
  Guarded& operator=(const Guarded&) = delete;
  ~Guarded() { munmap(base_, length_); }

  T* data() { return data_; }
  const T* data() const { return data_; }
  T& operator[](int64_t i) { return data_[i]; }
  const T& operator[](int64_t i) const { return data_[i]; }
  int64_t size() const { return count_; }
  bool same_bytes(const Guarded& other) const {
    return count_ == other.count_ && std::memcmp(data_, other.data_, static_cast<size_t>(count_) * sizeof(T)) == 0;
  }

 private:
  int64_t count_;
  size_t length_;
  void* base_;
  T* data_;
};

using Random = std::mt19937;

inline int64_t integer(Random& random, int64_t low, int64_t high) {
  return std::uniform_int_distribution<int64_t>(low, high)(random);
}

inline Guarded<float> normal(Random& random, int64_t count, float scale = 1.0f) {
  std::normal_distribution<float> distribution(0.0f, scale);
  std::vector<float> values(static_cast<size_t>(count));
  for (float& value : values) value = distribution(random);
  return Guarded<float>(values);
}

}  // namespace selftest
