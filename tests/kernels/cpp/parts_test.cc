// Single steps: decoding, rounding rows, layer norm, half precision.
#include <algorithm>
#include <cmath>

#include "coding.h"
#include "support.h"

namespace selftest {
namespace {

using namespace ditpress;

double half_value(uint16_t half) {
  const int exponent = half >> 10 & 31, mantissa = half & 1023;
  const double sign = half & 0x8000 ? -1.0 : 1.0;
  if (exponent == 31) return mantissa ? NAN : sign * INFINITY;
  return sign * (exponent ? std::ldexp(1024 + mantissa, exponent - 25) : std::ldexp(mantissa, -24));
}

void test_half(const Kernels& kernels) {
  Guarded<uint16_t> half(65536);
  Guarded<float> wide(65536);
  for (int i = 0; i < 65536; ++i) half[i] = static_cast<uint16_t>(i);
  kernels.widen_half(half.data(), wide.data(), 65536);
  bool good = true;
  for (int i = 0; i < 65536; ++i) {
    const double expected = half_value(half[i]);
    good &= std::isnan(expected) ? std::isnan(wide[i]) : expected == wide[i];
  }
  check(good, "half precision");
  for (int count : {1, 7, 17}) {
    Guarded<uint16_t> few(count);
    Guarded<float> out(count);
    few[count - 1] = 0x3c00;
    kernels.widen_half(few.data(), out.data(), count);
    check(out[count - 1] == 1.0f, "half precision of few values");
  }
}

void test_decode(const Kernels& kernels, Coding coding, bool folded, Random& random) {
  const Layout layout = kernels.layout(false, 127);
  const int64_t vectors = 3 * 4 * (layout.columns * 4 / layout.vector_bytes), count = vectors * layout.vector_bytes;
  const int in = unit_in(coding), out = unit_out(coding);
  Guarded<uint8_t> codes(coded_bytes(coding, vectors, layout.vector_bytes));
  const int most = coding == Coding::kTrits ? 242 : 255;
  for (int64_t i = 0; i < codes.size(); ++i) codes[i] = static_cast<uint8_t>(integer(random, 0, most));
  Guarded<uint8_t> table(kTableBytes);
  uint8_t entries[256];
  for (uint8_t& entry : entries) entry = static_cast<uint8_t>(integer(random, 0, 255));
  for (int i = 0; i < kTableBytes; ++i) table[i] = entries[i % 256 * 7 % 256];
  if (coding == Coding::kPairs)
    for (int i = 0; i < 16; ++i) table[i] = entries[i % 4];
  if (coding == Coding::kTrits)  // digit planes
    for (int digit = 0, power = 1; digit < 5; ++digit, power *= 3)
      for (int i = 0; i < 256; ++i) table[digit * 256 + i] = entries[i / power % 3];
  Guarded<int16_t> fold(layout.columns);
  for (int i = 0; i < layout.columns; ++i) fold[i] = static_cast<int16_t>(integer(random, -32767, 32767) >> i % 9);

  const int64_t space = count + out * layout.vector_bytes;
  Guarded<uint8_t> bytes(space), expected(space);
  kernels.decode({coding, codes.data(), table.data(), bytes.data(), vectors, folded ? fold.data() : nullptr, nullptr, 1});
  for (int64_t v = 0; v < vectors; v += out)
    decode_unit(coding, codes.data() + v / out * in * layout.vector_bytes, table.data(),
                expected.data() + v * layout.vector_bytes, layout.vector_bytes);
  for (int64_t i = 0; folded && i < count; ++i) {
    const int value = static_cast<int8_t>(expected[i] - layout.offset);
    const int rounded = static_cast<int>(std::floor((value * fold[i / 4 % layout.columns] + 64) / 128.0));
    expected[i] = static_cast<uint8_t>(std::min(127, std::max(-128, rounded)) + layout.offset);
  }
  check(std::memcmp(bytes.data(), expected.data(), static_cast<size_t>(count)) == 0,
        "decode of coding " + std::to_string(static_cast<int>(coding)) + (folded ? ", folded" : ""));
}

// One row with `groups` groups, its chunks `stride` bytes apart; `special` replaces its first value.
void test_quantize(const Kernels& kernels, int64_t group, int64_t groups, int64_t stride, float special,
                   Random& random) {
  const int64_t padded = (group + kChunk - 1) / kChunk * kChunk, k = group * groups;
  Guarded<float> x = normal(random, k, 3.0f);
  x[0] = special;
  Guarded<int8_t> q((groups * padded / kChunk - 1) * stride + kChunk);
  Guarded<int32_t> start(groups * 2 - 1);
  Guarded<float> scale(1);
  kernels.quantize_row({x.data(), groups, group, padded, q.data(), stride, scale.data(), start.data(), 2});
  float amax = 0.0f;
  bool finite = true;
  for (int64_t i = 0; i < k; ++i) {
    finite &= std::isfinite(x[i]);
    amax = std::fmax(amax, std::fabs(x[i]));
  }
  const bool zero = !finite || amax < 0x1p-120f;
  bool good = finite ? scale[0] == (zero ? 0.0f : amax / 127.0f) : std::isnan(scale[0]);
  for (int64_t g = 0; g < groups; ++g) {
    int32_t sum = 0;
    for (int64_t i = 0; i < padded; ++i) {
      const bool real = i < group && !zero;
      const float scaled = real ? x[g * group + i] * (127.0f / amax) : 0.0f;
      const int expected = static_cast<int>(std::nearbyint(scaled));
      good &= q[(g * padded + i) / kChunk * stride + i % kChunk] == expected;
      sum += expected;
    }
    if (kernels.layout(groups > 1, 1).offset) good &= start[2 * g] == -128 * sum;
  }
  const std::string name = std::to_string(groups) + " groups of " + std::to_string(group);
  check(good, "row to int8: " + name);
  if (!finite) return;
  Guarded<float> rest(k);
  kernels.residual_row({x.data(), groups, group, padded, q.data(), stride, scale[0], rest.data()});
  for (int64_t g = 0; g < groups; ++g)
    for (int64_t i = 0; i < group; ++i) {
      const double step = static_cast<double>(scale[0]) * q[(g * padded + i) / kChunk * stride + i % kChunk];
      good &= std::fabs(x[g * group + i] - step - rest[g * group + i]) <= 0x1p-23 * amax;
    }
  check(good, "rest of a row: " + name);
}

// One row in 4 bits, or as the digits of E4M3.
void test_low_bit(const Kernels& kernels, Activation activation, int64_t group, int64_t groups, float special,
                  Random& random) {
  const int64_t padded = (group + kChunk - 1) / kChunk * kChunk, k = group * groups, stride = 3 * kChunk;
  const int parts = activation == Activation::kFp8 ? 3 : 1;
  Guarded<float> x = normal(random, k, 3.0f);
  x[0] = special;
  for (int64_t i = 1; i < k; i += 5) x[i] *= 0x1p-8f;  // E4M3 has small numbers too
  Guarded<int8_t> q((groups * padded / kChunk - 1) * stride + parts * kChunk);
  Guarded<int32_t> start((groups - 1) * 5 + parts);
  Guarded<float> scale(parts == 3 ? 3 : (groups - 1) * 5 + 1);
  const RowJob job = {x.data(), groups, group, padded, q.data(), stride, scale.data(), start.data(), 5};
  if (parts == 3) kernels.quantize_fp8(job);
  else kernels.quantize_groups(job, activation);
  const Rounded right(x.data(), k, group, activation);
  bool good = true;
  for (int part = 0; part < parts; ++part) {
    const float weight = parts == 3 ? std::ldexp(1.0f, 14 - 7 * part) : 1.0f;
    for (int64_t g = 0; g < groups; ++g) {
      const float a = right.a[parts == 3 ? 0 : static_cast<size_t>(g)] * weight, got = scale[parts == 3 ? part : 5 * g];
      good &= std::isnan(a) ? std::isnan(got) : a == got;
      int32_t sum = 0;
      for (int64_t i = 0; i < padded; ++i) {
        const int whole = i < group ? right.q[static_cast<size_t>(g * group + i)] : 0;
        const int expected = parts == 3 ? digit_of(whole, part) : whole;
        good &= q[(g * padded + i) / kChunk * stride + part * kChunk + i % kChunk] == expected;
        sum += expected;
      }
      if (kernels.layout(true, 1).offset) good &= start[5 * g + part] == -128 * sum;
    }
  }
  check(good, "row of activations " + std::to_string(static_cast<int>(activation)) + ": " + std::to_string(groups) +
                  " groups of " + std::to_string(group) + " from " + std::to_string(special));
}

void test_sum(const Kernels& kernels, int columns, Random& random) {
  const Guarded<float> a = normal(random, columns), b = normal(random, columns, 1e-3f), c = normal(random, columns, 1e-5f);
  const Guarded<float> bias = normal(random, columns), rest = normal(random, columns);
  const int second = columns + 3;  // where the second row of gates begins, and the one that counts here
  const Guarded<float> gate = normal(random, second + columns);
  Guarded<float> y(columns);
  bool good = true;
  for (bool gated : {false, true}) {
    Epilogue epilogue = {};
    if (gated) epilogue = {false, gate.data(), rest.data(), columns, second, 5, 7};
    kernels.sum_row({{a.data(), b.data(), c.data()}, bias.data(), columns, 0, y.data(), epilogue});
    for (int i = 0; i < columns; ++i) {
      const float sum = a[i] + (b[i] + c[i]) + bias[i];
      good &= y[i] == (gated ? std::fma(gate[second + i], sum, rest[i]) : sum);
    }
  }
  check(good, "sum of " + std::to_string(columns) + " columns");
}

void test_normalize(const Kernels& kernels, int64_t k, Random& random) {
  Guarded<float> x = normal(random, k), shift = normal(random, k), modulation = normal(random, k), y(k);
  for (int64_t i = 0; i < k; ++i) x[i] += 1.5f;
  constexpr float kEpsilon = 1e-5f;
  kernels.normalize_row({x.data(), shift.data(), modulation.data(), y.data(), k, kEpsilon});
  double mean = 0.0, variance = 0.0;
  for (int64_t i = 0; i < k; ++i) mean += x[i];
  mean /= static_cast<double>(k);
  for (int64_t i = 0; i < k; ++i) variance += (x[i] - mean) * (x[i] - mean);
  const double inverse = 1.0 / std::sqrt(variance / static_cast<double>(k) + kEpsilon);
  bool good = true;
  for (int64_t i = 0; i < k; ++i) {
    const double expected = (x[i] - mean) * inverse * (1.0 + modulation[i]) + shift[i];
    good &= std::fabs(y[i] - expected) <= 4e-6 * (4.0 + std::fabs(modulation[i]) * 4.0 + std::fabs(expected));
  }
  check(good, "layer norm of " + std::to_string(k) + " values");
}

}  // namespace

void test_parts(const Kernels& kernels) {
  Random random(1);
  test_half(kernels);
  for (Coding coding : {Coding::kNibbles, Coding::kPairs, Coding::kTrits, Coding::kVector8x4, Coding::kVector6x2})
    for (bool folded : {false, true}) test_decode(kernels, coding, folded, random);
  for (int64_t group : {1, 3, 9, 16, 17, 20, 31, 64, 70, 130})
    for (int64_t groups : {1, 3})
      for (float special : {1.0f, 0.0f, 3e38f, NAN, -INFINITY})
        test_quantize(kernels, group, groups, groups * 2 * kChunk, special, random);
  for (Activation activation : {Activation::kInt4, Activation::kUint4, Activation::kFp4, Activation::kFp8})
    for (int64_t group : {1, 3, 16, 17, 33, 64})
      for (int64_t groups : {1, 3})
        for (float special : {1.0f, 0.0f, -2.0f, 3e38f, 1e-40f, 0x1p-100f, NAN, -NAN, -INFINITY})
          test_low_bit(kernels, activation, group, groups, special, random);
  for (int columns : {1, 7, 16, 31, 64})
    if (columns <= kernels.layout(false, 127).columns) test_sum(kernels, columns, random);
  Guarded<float> tiny(20);  // all of it too small
  Guarded<int8_t> q(2 * kChunk);
  Guarded<float> scale(1);
  Guarded<int32_t> start(1);
  for (int i = 0; i < 20; ++i) tiny[i] = 1e-40f, q[i] = 1;
  kernels.quantize_row({tiny.data(), 1, 20, 32, q.data(), kChunk, scale.data(), start.data(), 1});
  bool zero = scale[0] == 0.0f;
  for (int i = 0; i < 32; ++i) zero &= q[i] == 0;
  check(zero, "row of tiny values");
  for (int64_t k : {1, 3, 8, 16, 17, 33, 64, 100, 1000}) test_normalize(kernels, k, random);
}

}  // namespace selftest
