// Layer norm with modulation, and what rounding leaves, of one row. V: a `Floats` of this folder.
#pragma once

#include "../rows.h"
#include "../unroll.h"

namespace ditpress {
namespace {

template <class V>
DITPRESS_INLINE void normalize(const NormJob& job) {
  constexpr int kLanes = V::kLanes, kParts = 4;  // sums of their own, to be added side by side
  const auto total = [&](auto&& value) __attribute__((always_inline)) {
    typename V::Vector part[kParts];
    DITPRESS_EACH(kParts, j) part[j] = V::zero(); DITPRESS_END
    int64_t i = 0;
    for (; i + kParts * kLanes <= job.k; i += kParts * kLanes)
      DITPRESS_EACH(kParts, j) part[j] = value(V::load(job.x + i + kLanes * j), kLanes, part[j]); DITPRESS_END
    for (; i < job.k; i += kLanes) part[0] = value(V::load_first(job.x + i, job.k - i), job.k - i, part[0]);
    return V::sum(V::add(V::add(part[0], part[1]), V::add(part[2], part[3])));
  };
  const float count = static_cast<float>(job.k);
  const auto mean = V::fill(
      total([](auto x, int64_t, auto sum) __attribute__((always_inline)) { return V::add(sum, x); }) / count);
  const float square = total([&](auto x, int64_t held, auto sum) __attribute__((always_inline)) {
    auto centred = V::sub(x, mean);
    if (held < kLanes) centred = V::keep_first(centred, held, 0.0f);
    return V::fma(centred, centred, sum);
  });
  const auto inverse = V::fill(inverse_deviation(square / count, job.epsilon));
  for (int64_t i = 0; i < job.k; i += kLanes) {
    const int64_t left = job.k - i;
    const auto normal = V::mul(V::sub(V::load_first(job.x + i, left), mean), inverse);
    const auto factor = V::add(V::load_first(job.modulation + i, left), V::fill(1.0f));
    V::store_first(job.y + i, V::fma(normal, factor, V::load_first(job.shift + i, left)), left);
  }
}

template <class V>
DITPRESS_INLINE void residual(const ResidualJob& job) {
  const auto scale = V::fill(-job.scale);
  const int8_t* q = job.q;
  for (int64_t g = 0; g < job.groups; ++g)
    for (int64_t c = 0; c < job.padded_group; c += kChunk, q += job.q_stride) {
      const int64_t at = g * job.group + c, count = job.group - c < kChunk ? job.group - c : kChunk;
      for (int i = 0; i < count; i += V::kLanes) {
        const auto x = V::load_first(job.x + at + i, count - i);
        V::store_first(job.r + at + i, V::fma(scale, V::from_bytes(q + i), x), count - i);
      }
    }
}

}  // namespace
}  // namespace ditpress
