// Steps on one row in plain C++, for instruction sets without a version of their own; compiled once per including file
// with the flags of that file (internal linkage, so the linker cannot mix them up).
#pragma once

#include <cmath>
#include <cstring>

#include "core.h"

namespace ditpress {
namespace {

constexpr float kTiny = 0x1p-120f;       // rows with a smaller maximum count as zero: 127 / amax would overflow
constexpr float kRound = 0x1.8p23f;      // adding and subtracting it rounds |v| < 2**22 to a whole number, half to even
constexpr uint32_t kInfBits = 0x7f800000u;

// Row scale and factor from the bits of the largest magnitude. As integers, NaN > infinity > every finite number.
inline void row_factors(uint32_t amax_bits, float* scale, float* factor) {
  float amax;
  std::memcpy(&amax, &amax_bits, sizeof amax);
  if (amax_bits >= kInfBits) {
    const uint32_t nan = 0x7fc00000u;
    std::memcpy(scale, &nan, sizeof nan);
    *factor = 0.0f;
  } else if (amax < kTiny) {
    *scale = 0.0f;
    *factor = 0.0f;
  } else {
    *scale = amax / 127.0f;
    *factor = 127.0f / amax;
  }
}

// Signed layout: no compensation, sums start at zero.
inline void quantize_row_generic(const RowJob& job) {
  const int64_t k = job.groups * job.group;
  uint32_t amax = 0;
  for (int64_t i = 0; i < k; ++i) {
    uint32_t bits;
    std::memcpy(&bits, job.x + i, sizeof bits);
    bits &= 0x7fffffffu;
    amax = bits > amax ? bits : amax;
  }
  float factor;
  row_factors(amax, job.scale, &factor);
  int8_t* q = job.q;
  for (int64_t g = 0; g < job.groups; ++g) {
    const float* x = job.x + g * job.group;
    job.start[g * job.start_stride] = 0;
    for (int64_t c = 0; c < job.padded_group; c += kChunk, q += job.q_stride) {
      const int64_t count = job.group - c < kChunk ? job.group - c : kChunk;
      if (factor == 0.0f) {  // also keeps infinity * 0 out of the conversion
        std::memset(q, 0, kChunk);
        continue;
      }
      int8_t chunk[kChunk] = {};
      for (int64_t i = 0; i < count; ++i) {
        const float v = x[c + i] * factor;
        chunk[i] = static_cast<int8_t>(static_cast<int32_t>((v + kRound) - kRound));
      }
      std::memcpy(q, chunk, kChunk);
    }
  }
}

inline void residual_row_generic(const ResidualJob& job) {
  const int8_t* q = job.q;
  for (int64_t g = 0; g < job.groups; ++g)
    for (int64_t c = 0; c < job.padded_group; c += kChunk, q += job.q_stride) {
      const int64_t at = g * job.group + c, count = job.group - c < kChunk ? job.group - c : kChunk;
      if (count == kChunk)
        for (int i = 0; i < kChunk; ++i) job.r[at + i] = job.x[at + i] - job.scale * static_cast<float>(q[i]);
      else
        for (int i = 0; i < count; ++i) job.r[at + i] = job.x[at + i] - job.scale * static_cast<float>(q[i]);
    }
}

inline float inverse_deviation(float variance, float epsilon) { return 1.0f / std::sqrt(variance + epsilon); }

inline void normalize_row_generic(const NormJob& job) {
  float sum = 0.0f, square = 0.0f;
  for (int64_t i = 0; i < job.k; ++i) sum += job.x[i];
  const float mean = sum / static_cast<float>(job.k);
  for (int64_t i = 0; i < job.k; ++i) square += (job.x[i] - mean) * (job.x[i] - mean);
  const float inverse = inverse_deviation(square / static_cast<float>(job.k), job.epsilon);
  for (int64_t i = 0; i < job.k; ++i)
    job.y[i] = (job.x[i] - mean) * inverse * (1.0f + job.modulation[i]) + job.shift[i];
}

}  // namespace
}  // namespace ditpress
