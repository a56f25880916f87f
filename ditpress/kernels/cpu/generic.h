// Plain C++ steps for instruction sets without a version of their own, compiled once per including file with the
// flags of that file (internal linkage, so the linker cannot mix them up).
#pragma once

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

// Signed layout: no compensation, `start` stays unused.
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

inline float half_to_float(uint16_t half) {
  const uint32_t sign = static_cast<uint32_t>(half & 0x8000u) << 16, exponent = (half >> 10) & 31u;
  const uint32_t mantissa = half & 0x3ffu;
  uint32_t bits;
  if (exponent == 0) {  // zero or subnormal: mantissa * 2**-24, exact in float
    const float magnitude = static_cast<float>(mantissa) * 0x1p-24f;
    std::memcpy(&bits, &magnitude, sizeof bits);
    bits |= sign;
  } else if (exponent == 31) {
    bits = sign | kInfBits | (mantissa << 13);
  } else {
    bits = sign | ((exponent + 112u) << 23) | (mantissa << 13);
  }
  float value;
  std::memcpy(&value, &bits, sizeof value);
  return value;
}

}  // namespace
}  // namespace ditpress
