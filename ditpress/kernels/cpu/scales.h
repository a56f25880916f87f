// The best of several scales for every group of weights in plain C++, written so that compilers make vectors of it.
#pragma once

#include <cmath>

#include "core.h"

namespace ditpress {
namespace {

// Weights of the errors of a group; null: all 1.
inline const float* importance_of(const ScaleJob& job, int64_t group) {
  return job.importance ? job.importance + (job.first + group) % job.importance_rows * job.group : nullptr;
}

inline float inverse_of(float scale) { return scale == 0.0f ? 0.0f : 1.0f / scale; }

inline float nearest_value(const ScaleJob& job, float x) {
  if (!job.values) {
    constexpr float kRound = 0x1.8p23f;  // adding and subtracting it rounds to a whole number, half to even
    x = x > job.low ? x : job.low;       // a NaN too
    x = x < job.high ? x : job.high;
    return (x + kRound) - kRound;
  }
  x *= 2.0f;
  x = x > 2.0f * job.low ? x : 2.0f * job.low;
  x = x < 2.0f * job.high ? x : 2.0f * job.high;
  int32_t half = static_cast<int32_t>(x);
  half -= static_cast<float>(half) > x;
  return job.values[half - static_cast<int32_t>(2.0f * job.low)];
}

inline void best_scales_generic(const ScaleJob& job) {
  constexpr int kLanes = 16;  // sums of their own, or the additions could not be done side by side
  for (int64_t group = 0; group < job.groups; ++group) {
    const float* const weight = job.weight + group * job.group;
    const float* const importance = importance_of(job, group);
    float least = INFINITY;
    int64_t best = 0;
    for (int64_t t = 0; t < job.tried; ++t) {
      const float scale = job.scale[group * job.tried + t], inverse = inverse_of(scale);
      float lanes[kLanes] = {};
      for (int64_t i = 0; i < job.group; i += kLanes) {
        const int held = job.group - i < kLanes ? static_cast<int>(job.group - i) : kLanes;
        float square[kLanes] = {};
        for (int lane = 0; lane < held; ++lane) {
          const float left = nearest_value(job, weight[i + lane] * inverse) * scale - weight[i + lane];
          square[lane] = left * left;
        }
        if (importance)
          for (int lane = 0; lane < held; ++lane) square[lane] *= importance[i + lane];
        for (int lane = 0; lane < kLanes; ++lane) lanes[lane] += square[lane];
      }
      float error = 0.0f;
      for (const float lane : lanes) error += lane;
      if (error < least) {
        least = error;
        best = t;
      }
    }
    job.best[group] = best;
    job.error[group] = least;
  }
}

}  // namespace
}  // namespace ditpress
