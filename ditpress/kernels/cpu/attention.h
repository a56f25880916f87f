// Attention of one head in plain C++, query by query, written so that compilers make vectors of it.
#pragma once

#include <cmath>

#include "core.h"

namespace ditpress {
namespace {

inline void attention_generic(const AttentionJob& job) {
  float* const scores = job.workspace;
  for (int64_t t = 0; t < job.queries; ++t) {
    const float* q = job.q + t * job.q_stride;
    float largest = -INFINITY;
    for (int64_t s = 0; s < job.keys; ++s) {
      const float* k = job.k + s * job.k_stride;
      float lanes[16] = {};  // sums of their own, or the additions could not be done side by side
      int64_t i = 0;
      for (; i + 16 <= job.width; i += 16)
        for (int lane = 0; lane < 16; ++lane) lanes[lane] += q[i + lane] * k[i + lane];
      for (; i < job.width; ++i) lanes[0] += q[i] * k[i];
      float score = 0.0f;
      for (int lane = 0; lane < 16; ++lane) score += lanes[lane];
      score *= job.scale;
      if (job.mask) score += job.mask[t * job.mask_t + s * job.mask_s];
      scores[s] = score;
      largest = score > largest ? score : largest;
    }
    float* const y = job.y + t * job.y_stride;
    for (int64_t i = 0; i < job.width; ++i) y[i] = 0.0f;
    float sum = 0.0f;
    for (int64_t s = 0; s < job.keys; ++s) {
      const float p = std::exp(scores[s] - largest);
      const float* v = job.v + s * job.v_stride;
      sum += p;
      for (int64_t i = 0; i < job.width; ++i) y[i] += p * v[i];
    }
    for (int64_t i = 0; i < job.width; ++i) y[i] /= sum;
  }
}

}  // namespace
}  // namespace ditpress
