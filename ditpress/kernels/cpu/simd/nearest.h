// The cheapest codeword of every point, many points side by side: costs never leave the registers. V: a `Floats` of this
// folder.
#pragma once

#include "../nearest.h"
#include "../unroll.h"

namespace ditpress {
namespace {

template <class V>
void nearest(const NearestJob& job) {
  constexpr int kLanes = V::kLanes, kVectors = kNearestTile / kLanes;
  const float* const pressure = job.workspace;
  const float* const pull = pressure + job.length * kNearestTile;
  for (int64_t first = 0; first < job.points; first += kNearestTile) {
    const int64_t count = side_by_side(job, first);
    typename V::Vector best[kVectors];
    typename V::Ints code[kVectors];
    DITPRESS_EACH(kVectors, v)
      best[v] = V::fill(INFINITY);
      code[v] = V::fill_ints(0);
    DITPRESS_END
    const float* term = job.terms;
    for (int64_t entry = 0; entry < job.entries; ++entry) {
      typename V::Vector cost[kVectors];
      DITPRESS_EACH(kVectors, v) cost[v] = V::zero(); DITPRESS_END
      for (int64_t i = 0; i < job.length; ++i, term += 2) {
        const auto square = V::fill(term[0]), linear = V::fill(term[1]);
        DITPRESS_EACH(kVectors, v)
          const int64_t at = i * kNearestTile + kLanes * v;
          cost[v] = V::fma(V::load(pull + at), linear, V::fma(V::load(pressure + at), square, cost[v]));
        DITPRESS_END
      }
      const auto here = V::fill_ints(static_cast<int32_t>(entry));
      DITPRESS_EACH(kVectors, v)
        const auto less = V::less(cost[v], best[v]);
        best[v] = V::select(less, cost[v], best[v]);
        code[v] = V::select(less, here, code[v]);
      DITPRESS_END
    }

    float costs[kNearestTile];
    int32_t codes[kNearestTile];
    DITPRESS_EACH(kVectors, v)
      V::store(costs + kLanes * v, best[v]);
      V::store_ints(codes + kLanes * v, code[v]);
    DITPRESS_END
    for (int64_t p = 0; p < count; ++p) {
      job.cost[first + p] = costs[p];
      job.codes[first + p] = codes[p];
    }
  }
}

}  // namespace
}  // namespace ditpress
