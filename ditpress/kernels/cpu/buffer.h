// Zeroed memory on a cache line boundary that grows when asked to and keeps nothing when it does.
#pragma once

#include <cstdint>
#include <new>

#include "pages.h"

namespace ditpress {

template <class T>
class Buffer {
 public:
  Buffer() = default;
  explicit Buffer(int64_t count) { reserve(count); }
  Buffer(const Buffer&) = delete;
  Buffer& operator=(const Buffer&) = delete;
  ~Buffer() { give_pages(data_, bytes()); }

  void reserve(int64_t count) {
    if (count <= count_) return;
    give_pages(data_, bytes());
    data_ = nullptr;
    count_ = 0;
    data_ = static_cast<T*>(take_pages(static_cast<size_t>(count) * sizeof(T)));
    if (!data_) throw std::bad_alloc();
    count_ = count;
  }
  T* data() { return data_; }
  const T* data() const { return data_; }
  size_t bytes() const { return static_cast<size_t>(count_) * sizeof(T); }

 private:
  T* data_ = nullptr;
  int64_t count_ = 0;
};

}  // namespace ditpress
