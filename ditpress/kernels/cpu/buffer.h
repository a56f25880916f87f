// Zeroed memory on a cache line boundary that grows when asked to and keeps nothing when it does.
#pragma once

#include <cstdint>
#include <cstdlib>
#include <new>

namespace ditpress {

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

}  // namespace ditpress
