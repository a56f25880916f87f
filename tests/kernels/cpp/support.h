// What the tests share.
#pragma once

#include <sys/mman.h>
#include <unistd.h>

#include <cmath>
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

void test_pool();
void test_parts(const ditpress::Kernels& kernels);
void test_linear(const ditpress::Kernels& kernels);
void test_attention(const ditpress::Kernels& kernels);
void test_nearest(const ditpress::Kernels& kernels);
void test_scales(const ditpress::Kernels& kernels);

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

// The whole numbers of an activation format that are not negative, ascending; those of even index have an even mantissa.
inline std::vector<double> grid_of(ditpress::Activation activation) {
  std::vector<double> grid;
  const auto count_to = [&](int last) {
    for (int i = 0; i <= last; ++i) grid.push_back(i);
  };
  switch (activation) {
    case ditpress::Activation::kInt8: count_to(127); break;
    case ditpress::Activation::kInt4: count_to(7); break;
    case ditpress::Activation::kUint4: count_to(15); break;
    case ditpress::Activation::kFp4: grid = {0, 1, 2, 3, 4, 6, 8, 12}; break;
    default:  // E4M3 in steps of 2**-9: its codes in order, without that of NaN
      for (int code = 0; code < 127; ++code)
        grid.push_back(code < 8 ? code : std::ldexp(8 + code % 8, code / 8 - 1));
  }
  return grid;
}

// A row as whole numbers, the nearest of the grid (of two equally near the one of even index), and its scales.
struct Rounded {
  Rounded(const float* x, int64_t k, int64_t group, ditpress::Activation activation) : q(static_cast<size_t>(k)) {
    const bool positive = activation == ditpress::Activation::kUint4, fp8 = activation == ditpress::Activation::kFp8;
    if (!ditpress::scales_groups(activation)) group = k;
    const std::vector<double> grid = grid_of(activation);
    const float unit = fp8 ? 512.0f : 1.0f, top = static_cast<float>(grid.back()) / unit;
    for (int64_t first = 0; first < k; first += group) {
      float amax = 0.0f;
      bool finite = true;
      for (int64_t i = first; i < first + group; ++i) {
        finite &= std::isfinite(x[i]);
        amax = std::fmax(amax, positive ? x[i] : std::fabs(x[i]));
      }
      const bool zero = !finite || amax < (fp8 ? 0x1p-118f : 0x1p-120f);
      a.push_back(!finite ? NAN : zero ? 0.0f : amax / (top * unit));
      for (int64_t i = first; !zero && i < first + group; ++i) {
        const float v = (positive && x[i] < 0 ? 0.0f : x[i]) * (top / amax) * unit;
        const double size = std::fabs(static_cast<double>(v));
        size_t best = 0;
        for (size_t j = 1; j < grid.size(); ++j) {
          const double here = std::fabs(size - grid[j]), there = std::fabs(size - grid[best]);
          if (here < there || (here == there && j % 2 == 0)) best = j;
        }
        q[static_cast<size_t>(i)] = static_cast<int>(std::copysign(grid[best], v));
      }
    }
  }
  std::vector<int> q;
  std::vector<float> a;
};

// One of the three digits of a whole number of E4M3, `digit` 0 the highest.
inline int digit_of(int q, int digit) {
  const int first = static_cast<int>(std::nearbyint(q / 16384.0)), left = q - 16384 * first;
  const int second = static_cast<int>(std::nearbyint(left / 128.0));
  return digit == 0 ? first : digit == 1 ? second : left - 128 * second;
}

}  // namespace selftest
