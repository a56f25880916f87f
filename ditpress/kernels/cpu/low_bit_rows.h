// Rows of activations to 4 bits and to E4M3, in plain C++ that compilers turn into vectors; the definition is
// ditpress/kernels/activations.py. As rows.h, compiled once per including file with the flags of that file.
#pragma once

#include "rows.h"

namespace ditpress {
namespace {

constexpr float kFp8Levels = 448.0f, kFp8Units = 512.0f;  // E4M3: the largest value, and steps in one
constexpr float kFp8Tiny = 0x1p-118f;  // rows below it count as zero: 448 / amax would overflow
constexpr int kDigits = 3;
constexpr float kDigitWeight[kDigits] = {0x1p14f, 0x1p7f, 1.0f};

// Scale and factor from the bits of the value that becomes the largest whole number, `levels * units`, and of the
// largest magnitude. Below `tiny` all is zero.
inline void low_bit_factors(uint32_t amax_bits, uint32_t top_bits, float levels, float units, float tiny, float* scale,
                            float* factor) {
  float amax;
  std::memcpy(&amax, &amax_bits, sizeof amax);
  *factor = 0.0f;
  if (top_bits >= kInfBits) {
    const uint32_t nan = 0x7fc00000u;
    std::memcpy(scale, &nan, sizeof nan);
  } else if (amax < tiny) {
    *scale = 0.0f;
  } else {
    *scale = amax / (levels * units);
    *factor = levels / amax;
  }
}

inline int32_t bits_of(float x) {
  int32_t bits;
  std::memcpy(&bits, &x, sizeof bits);
  return bits;
}

inline float round_to(float v, float step) {
  const float c = kRound * step;
  return (v + c) - c;
}

struct Int4 {
  static constexpr float kLevels = 7.0f;
  static constexpr bool kPositive = false;
  static float nearest(float v) { return round_to(v, 1.0f); }
};
struct Uint4 {
  static constexpr float kLevels = 15.0f;
  static constexpr bool kPositive = true;
  static float nearest(float v) { return round_to(v, 1.0f); }
};
struct Fp4 {  // E2M1 in half units
  static constexpr float kLevels = 12.0f;
  static constexpr bool kPositive = false;
  static float nearest(float v) {
    const float size = std::fabs(v);
    return round_to(v, size < 4.0f ? 1.0f : size < 8.0f ? 2.0f : 4.0f);
  }
};

// `count` of 16 values, rounded, as bytes; the rest zero. Their sum.
template <class F>
inline int32_t round_chunk_generic(const float* x, int64_t count, F&& nearest, int8_t* q) {
  float held[kChunk] = {};
  if (count < kChunk) {
    std::memcpy(held, x, static_cast<size_t>(count) * sizeof(float));
    x = held;
  }
  int8_t chunk[kChunk];
  int32_t sum = 0;
  for (int i = 0; i < kChunk; ++i) {
    const int32_t value = static_cast<int32_t>(nearest(x[i]));
    chunk[i] = static_cast<int8_t>(value);
    sum += value;
  }
  std::memcpy(q, chunk, kChunk);
  return sum;
}

template <class Format>
inline void quantize_groups_as(const RowJob& job) {
  int8_t* q = job.q;
  for (int64_t g = 0; g < job.groups; ++g) {
    const float* const x = job.x + g * job.group;
    int32_t top = 0, amax = 0;
    for (int64_t i = 0; i < job.group; ++i) {
      const int32_t bits = bits_of(x[i]), size = bits & 0x7fffffff;
      top = size > top ? size : top;
      amax = bits > amax ? bits : amax;  // negative numbers are negative integers
    }
    if (!Format::kPositive) amax = top;
    float factor;
    low_bit_factors(static_cast<uint32_t>(amax), static_cast<uint32_t>(top), Format::kLevels, 1.0f, kTiny,
                    job.scale + g * job.start_stride, &factor);
    int32_t sum = 0;
    for (int64_t c = 0; c < job.padded_group; c += kChunk, q += job.q_stride) {
      if (factor == 0.0f) {  // also keeps infinity * 0 out of the conversion
        std::memset(q, 0, kChunk);
        continue;
      }
      const auto nearest = [&](float value) {
        if (Format::kPositive) value = value > 0.0f ? value : 0.0f;
        return Format::nearest(value * factor);
      };
      sum += round_chunk_generic(x + c, job.group - c < kChunk ? job.group - c : kChunk, nearest, q);
    }
    job.start[g * job.start_stride] = -128 * sum;  // layouts without an offset do not read it
  }
}

inline void quantize_groups_generic(const RowJob& job, Activation activation) {
  switch (activation) {
    case Activation::kInt4: return quantize_groups_as<Int4>(job);
    case Activation::kUint4: return quantize_groups_as<Uint4>(job);
    default: return quantize_groups_as<Fp4>(job);
  }
}

// To four significant bits, but to no smaller steps than 1; then what `digit` of three takes of it.
inline float fp8_digit(float v, int digit) {
  int32_t bits = (bits_of(v) & 0x7f800000) - (3 << 23);  // of the step
  const int32_t one = 127 << 23;
  bits = bits < one ? one : bits;
  float step;
  std::memcpy(&step, &bits, sizeof step);
  const float whole = round_to(v, step);
  const float first = round_to(whole * (1.0f / kDigitWeight[0]), 1.0f);
  const float left = whole - first * kDigitWeight[0];
  const float second = round_to(left * (1.0f / kDigitWeight[1]), 1.0f);
  return digit == 0 ? first : digit == 1 ? second : left - second * kDigitWeight[1];
}

inline void quantize_fp8_generic(const RowJob& job) {
  const int64_t k = job.groups * job.group;
  int32_t top = 0;
  for (int64_t i = 0; i < k; ++i) {
    const int32_t size = bits_of(job.x[i]) & 0x7fffffff;
    top = size > top ? size : top;
  }
  float factor, unit;
  low_bit_factors(static_cast<uint32_t>(top), static_cast<uint32_t>(top), kFp8Levels, kFp8Units, kFp8Tiny, &unit,
                  &factor);
  for (int digit = 0; digit < kDigits; ++digit) job.scale[digit] = unit * kDigitWeight[digit];
  int8_t* q = job.q;
  for (int64_t g = 0; g < job.groups; ++g) {
    const float* const x = job.x + g * job.group;
    int32_t sum[kDigits] = {};
    for (int64_t c = 0; c < job.padded_group; c += kChunk, q += job.q_stride) {
      if (factor == 0.0f) {
        std::memset(q, 0, kDigits * kChunk);
        continue;
      }
      for (int digit = 0; digit < kDigits; ++digit)
        sum[digit] += round_chunk_generic(
            x + c, job.group - c < kChunk ? job.group - c : kChunk,
            [&](float value) { return fp8_digit(value * factor * kFp8Units, digit); }, q + digit * kChunk);
    }
    for (int digit = 0; digit < kDigits; ++digit) job.start[g * job.start_stride + digit] = -128 * sum[digit];
  }
}

}  // namespace
}  // namespace ditpress
