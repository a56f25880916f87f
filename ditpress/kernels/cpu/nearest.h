// The cheapest codeword of every point: points side by side, and the search in plain C++, written so that compilers make
// vectors of it.
#pragma once

#include <cmath>

#include "core.h"

namespace ditpress {
namespace {

// kNearestTile points from `first`, pressure and after it pull as [length][kNearestTile]; missing points are zero. Returns
// how many there are.
inline int64_t side_by_side(const NearestJob& job, int64_t first) {
  const int64_t count = job.points - first < kNearestTile ? job.points - first : kNearestTile;
  float* const pressure = job.workspace;
  float* const pull = pressure + job.length * kNearestTile;
  for (int64_t i = 0; i < job.length; ++i)
    for (int64_t p = 0; p < kNearestTile; ++p) {
      const int64_t at = (first + p) * job.length + i;
      pressure[i * kNearestTile + p] = p < count ? job.pressure[at] : 0.0f;
      pull[i * kNearestTile + p] = p < count ? job.pull[at] : 0.0f;
    }
  return count;
}

inline void nearest_generic(const NearestJob& job) {
  for (int64_t first = 0; first < job.points; first += kNearestTile) {
    const int64_t count = side_by_side(job, first);
    float best[kNearestTile];
    int32_t code[kNearestTile] = {};
    for (float& value : best) value = INFINITY;
    const float* term = job.terms;
    for (int64_t entry = 0; entry < job.entries; ++entry) {
      float cost[kNearestTile] = {};
      for (int64_t i = 0; i < job.length; ++i, term += 2) {
        const float* const pressure = job.workspace + i * kNearestTile;
        const float* const pull = pressure + job.length * kNearestTile;
        for (int p = 0; p < kNearestTile; ++p) cost[p] += pressure[p] * term[0] + pull[p] * term[1];
      }
      for (int p = 0; p < kNearestTile; ++p) {
        const bool less = cost[p] < best[p];
        best[p] = less ? cost[p] : best[p];
        code[p] = less ? static_cast<int32_t>(entry) : code[p];
      }
    }
    for (int64_t p = 0; p < count; ++p) {
      job.cost[first + p] = best[p];
      job.codes[first + p] = code[p];
    }
  }
}

}  // namespace
}  // namespace ditpress
