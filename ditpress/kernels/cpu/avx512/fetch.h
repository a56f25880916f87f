// Memory that will be wanted soon, fetched a line at a time inside a loop of products: a burst of fetches would take all
// the places for misses that the operands of the loop, which come from the second-level cache, need meanwhile.
#pragma once

#include "common.h"

namespace ditpress {
namespace {

class Fetch {
 public:
  // `near`: what is fetched again and again once the list is done; something that is near anyway.
  explicit Fetch(const void* near) : end_(lines_), near_(near) { start(); }

  void clear() { end_ = lines_; }
  void add(const void* line) {
    if (end_ < lines_ + kMost) *end_++ = line;
  }
  // The lines of `count` values from `x` on.
  void add(const float* x, int64_t count) {
    for (int64_t i = 0; i < count + 15; i += 16) add(x + i);
  }
  void start() {
    *end_ = near_;
    line_ = lines_;
  }
  DITPRESS_INLINE void one() {
    _mm_prefetch(static_cast<const char*>(*line_), _MM_HINT_T1);
    line_ += line_ != end_;
  }

 private:
  static constexpr int kMost = 512;
  const void* lines_[kMost + 1];
  const void** end_;
  const void* const* line_;
  const void* near_;
};

}  // namespace
}  // namespace ditpress
