// The best of several scales for every group of weights, a few scales at a time. V: a `Floats` of this folder.
#pragma once

#include "../scales.h"
#include "../unroll.h"

namespace ditpress {
namespace {

// Whole numbers from low to high.
template <class V>
struct Uniform {
  explicit Uniform(const ScaleJob& job) : low(V::fill(job.low)), high(V::fill(job.high)) {}
  DITPRESS_INLINE typename V::Vector nearest(typename V::Vector x) const {
    return V::round(V::min(V::max(x, low), high));  // this order: a NaN becomes `low`
  }
  typename V::Vector low, high;
};

// Any others, by halves.
template <class V>
struct Table {
  explicit Table(const ScaleJob& job)
      : low(V::fill(2.0f * job.low)), high(V::fill(2.0f * job.high)), values(job.values) {}
  DITPRESS_INLINE typename V::Vector nearest(typename V::Vector x) const {
    const auto half = V::floor(V::min(V::max(V::add(x, x), low), high));
    return V::lookup(values, V::to_ints(V::sub(half, low)));
  }
  typename V::Vector low, high;
  const float* values;
};

template <class V, class Values>
void best_scales(const ScaleJob& job) {
  constexpr int kLanes = V::kLanes, kTried = 4;
  const Values values(job);
  for (int64_t group = 0; group < job.groups; ++group) {
    const float* const weight = job.weight + group * job.group;
    const float* const scales = job.scale + group * job.tried;
    const float* const importance = importance_of(job, group);
    float least = INFINITY;
    int64_t best = 0;
    for (int64_t t = 0; t < job.tried; t += kTried) {
      typename V::Vector scale[kTried], inverse[kTried], sum[kTried];
      DITPRESS_EACH(kTried, j)
        const float value = scales[t + j < job.tried ? t + j : job.tried - 1];  // again: it cannot be better than itself
        scale[j] = V::fill(value);
        inverse[j] = V::fill(inverse_of(value));
        sum[j] = V::zero();
      DITPRESS_END
      const auto add = [&](auto w, int64_t at, int64_t held) __attribute__((always_inline)) {
        DITPRESS_EACH(kTried, j)
          auto left = V::sub(V::mul(values.nearest(V::mul(w, inverse[j])), scale[j]), w);
          if (held < kLanes) left = V::keep_first(left, held, 0.0f);
          const auto weighted = importance ? V::mul(left, V::load_first(importance + at, held)) : left;
          sum[j] = V::fma(left, weighted, sum[j]);
        DITPRESS_END
      };
      int64_t i = 0;
      for (; i + kLanes <= job.group; i += kLanes) add(V::load(weight + i), i, kLanes);
      if (i < job.group) add(V::load_first(weight + i, job.group - i), i, job.group - i);
      DITPRESS_EACH(kTried, j)
        const float error = V::sum(sum[j]);
        if (error < least) {
          least = error;
          best = t + j;
        }
      DITPRESS_END
    }
    job.best[group] = best;
    job.error[group] = least;
  }
}

template <class V>
DITPRESS_INLINE void best_scales(const ScaleJob& job) {
  if (job.values) best_scales<V, Table<V>>(job);
  else best_scales<V, Uniform<V>>(job);
}

}  // namespace
}  // namespace ditpress
