// A weight repacked into the panels of an instruction set, and the product with it.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

#include "core.h"
#include "pool.h"

namespace ditpress {

// Zeroed memory on a cache line boundary that grows when asked to and keeps nothing when it does.
template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) { reserve(count); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { std::free(raw_); }

  void reserve(int64_t count) {
    if (count <= count_) return;
    std::free(raw_);
    raw_ = nullptr;
    count_ = 0;
    raw_ = std::calloc(static_cast<size_t>(count) * sizeof(T) + kLine, 1);
    if (!raw_) throw std::bad_alloc();
    count_ = count;
  }
  T* data() { return const_cast<T*>(static_cast<const Buffer*>(this)->data()); }
  const T* data() const {
    return reinterpret_cast<const T*>((reinterpret_cast<uintptr_t>(raw_) + kLine - 1) / kLine * kLine);
  }
  int64_t bytes() const { return count_ * static_cast<int64_t>(sizeof(T)); }

 private:
  static constexpr uintptr_t kLine = 64;
  void* raw_ = nullptr;
  int64_t count_ = 0;
};

// The stored form of a weight, as in `ditpress::qlinear` with codebook vectors of length 1.
struct WeightSource {
  const uint8_t* codes;     // [n][ceil(k * bits / 8)]
  int64_t n, k;
  int bits;                 // 4 or 8
  const void* scale;        // [n][groups], float or half
  bool scale_is_half;
  int64_t groups;           // a divisor of k
  const int8_t* codebook;   // [2**bits]
  Activation activation;
};

class Weight {
 public:
  // Repacks. Throws std::invalid_argument for sizes that cannot be, std::bad_alloc.
  Weight(const WeightSource& source, const Kernels& kernels);

  // y [m][n] = x [m][k] * weight + bias [n] (null: zero). x and y need no alignment. Throws std::bad_alloc only.
  // The result does not depend on the pool.
  void run(const float* x, int64_t m, const float* bias, float* y, const Pool& pool) const;

  int64_t n() const { return n_; }
  int64_t k() const { return k_; }
  int64_t bytes() const { return panels_.bytes() + scale_.bytes() + scale_half_.bytes(); }

 private:
  struct Panel;
  void pack_panels(const WeightSource& source);
  void pack_scale(const WeightSource& source);
  void run_int8(const float* x, int64_t m, const float* bias, float* y, const Pool& pool) const;
  void run_float(const float* x, int64_t m, const float* bias, float* y, const Pool& pool) const;
  Panel prepare(int64_t panel, bool nibbles, const float* bias) const;

  const Kernels& kernels_;
  Layout layout_;
  Activation activation_;
  int64_t n_, k_, groups_, group_, padded_group_, padded_k_;
  int64_t panel_count_, panel_bytes_;
  bool nibbles_;             // panels hold 4-bit codes
  uint8_t table_[16] = {};   // their decoded bytes
  Buffer<uint8_t> panels_;   // [panel][panel_bytes_]
  Buffer<float> scale_;      // [panel][groups][columns]; or, when stored in half,
  Buffer<uint16_t> scale_half_;
};

}  // namespace ditpress
