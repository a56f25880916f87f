// Whole products against the definition, computed in integers and float64 from codes that are packed here.
#include <algorithm>
#include <cmath>

#include "support.h"
#include "weight.h"

namespace selftest {
namespace {

using namespace ditpress;

struct Shape {
  int64_t m, n, group, groups;
};

// A stored weight, and what it means.
struct Problem {
  Problem(const Shape& shape, int entries, int d, bool half, Random& random)
      : shape(shape),
        entries(entries),
        d(d),
        half(half),
        k(shape.group * shape.groups),
        codes(shape.n * code_bytes(k / d, entries)),
        codebook(entries * d),
        scale_half(shape.n * shape.groups),
        scale(shape.n * shape.groups),
        x(normal(random, shape.m * k)),
        bias(normal(random, shape.n)),
        values(static_cast<size_t>(shape.n * k)) {
    for (int i = 0; i < entries * d; ++i) codebook[i] = static_cast<int8_t>(integer(random, -128, 127));
    for (int64_t i = 0; i < scale.size(); ++i) {
      const auto exponent = integer(random, 3, 10), mantissa = integer(random, 0, 1023);
      scale_half[i] = static_cast<uint16_t>(exponent << 10 | mantissa | (i % 5 == 4 ? 0x8000 : 0));
      scale[i] = static_cast<float>(std::ldexp(1024 + mantissa, static_cast<int>(exponent) - 25) * (i % 5 == 4 ? -1 : 1));
    }
    const int64_t row_bytes = code_bytes(k / d, entries);
    for (int64_t n = 0; n < shape.n; ++n)
      for (int64_t i = 0; i < k / d; ++i) {
        const int code = static_cast<int>(integer(random, 0, entries - 1));
        put(codes.data() + n * row_bytes, i, code);
        for (int j = 0; j < d; ++j) values[static_cast<size_t>(n * k + i * d + j)] = codebook[code * d + j];
      }
  }

  void put(uint8_t* row, int64_t i, int code) const {
    if (entries == 3) {
      const int power[5] = {1, 3, 9, 27, 81};
      row[i / 5] = static_cast<uint8_t>(row[i / 5] + power[i % 5] * code);
      return;
    }
    const int bits = entries == 2 ? 1 : entries == 4 ? 2 : entries == 16 ? 4 : entries == 64 ? 6 : 8;
    for (int b = 0; b < bits; ++b)
      row[(i * bits + b) / 8] |= static_cast<uint8_t>((code >> b & 1) << (i * bits + b) % 8);
  }

  WeightSource source(Activation activation, bool fold) const {
    const void* const stored = half ? static_cast<const void*>(scale_half.data()) : scale.data();
    return {codes.data(), shape.n, k, entries, d, codebook.data(), stored, half, shape.groups, activation, fold,
            1, nullptr};
  }

  Shape shape;
  int entries, d;
  bool half;
  int64_t k;
  Guarded<uint8_t> codes;
  Guarded<int8_t> codebook;
  Guarded<uint16_t> scale_half;
  Guarded<float> scale, x, bias;
  std::vector<int> values;  // [n][k]
};

// The definition with int8 activations.
void expect_int8(const Problem& p, bool fold, Guarded<float>& y) {
  const auto [m, n, group, groups] = p.shape;
  std::vector<int> w = p.values;
  std::vector<float> one(static_cast<size_t>(n));
  fold = fold && groups > 1;
  if (fold) {
    int largest = 0;
    for (int64_t i = 0; i < p.codebook.size(); ++i) largest = std::max(largest, std::abs(static_cast<int>(p.codebook[i])));
    for (int64_t c = 0; c < n; ++c) {
      float top = 0.0f;
      for (int64_t g = 0; g < groups; ++g) top = std::max(top, std::fabs(p.scale[c * groups + g]));
      const float s1 = one[static_cast<size_t>(c)] = top * static_cast<float>(largest) / 127.0f;
      for (int64_t i = 0; i < p.k; ++i) {
        const float factor = s1 > 0.0f ? std::nearbyint(128.0f * p.scale[c * groups + i / group] / s1) : 0.0f;
        int& value = w[static_cast<size_t>(c * p.k + i)];
        value = static_cast<int>(std::fmin(127.0, std::fmax(-128.0, std::floor((value * static_cast<double>(factor) + 64) / 128))));
      }
    }
  }
  for (int64_t r = 0; r < m; ++r) {
    const float* x = p.x.data() + r * p.k;
    float amax = 0.0f;
    for (int64_t i = 0; i < p.k; ++i) amax = std::max(amax, std::fabs(x[i]));
    const float factor = amax > 0.0f ? 127.0f / amax : 0.0f;
    std::vector<int> q(static_cast<size_t>(p.k));
    for (int64_t i = 0; i < p.k; ++i) q[static_cast<size_t>(i)] = static_cast<int>(std::nearbyint(x[i] * factor));
    for (int64_t c = 0; c < n; ++c) {
      float f = 0.0f;
      const int64_t span = fold ? p.k : group;
      for (int64_t g = 0; g < p.k / span; ++g) {
        int64_t sum = 0;
        for (int64_t i = g * span; i < (g + 1) * span; ++i)
          sum += q[static_cast<size_t>(i)] * w[static_cast<size_t>(c * p.k + i)];
        f = std::fma(static_cast<float>(sum), fold ? one[static_cast<size_t>(c)] : p.scale[c * groups + g], f);
      }
      y[r * n + c] = std::fma(f, amax / 127.0f, p.bias[c]);
    }
  }
}

// The definition with other activations that round.
void expect_low_bit(const Problem& p, Activation activation, Guarded<float>& y) {
  const auto [m, n, group, groups] = p.shape;
  const int parts = activation == Activation::kFp8 ? 3 : 1;
  for (int64_t r = 0; r < m; ++r) {
    const Rounded row(p.x.data() + r * p.k, p.k, group, activation);
    for (int64_t c = 0; c < n; ++c) {
      float results[3] = {};
      for (int part = 0; part < parts; ++part) {
        float f = 0.0f;
        for (int64_t g = 0; g < groups; ++g) {
          int64_t sum = 0;
          for (int64_t i = g * group; i < (g + 1) * group; ++i) {
            const int q = row.q[static_cast<size_t>(i)];
            sum += (parts == 3 ? digit_of(q, part) : q) * p.values[static_cast<size_t>(c * p.k + i)];
          }
          const float own = parts == 3 ? 1.0f : row.a[static_cast<size_t>(g)];
          f = std::fma(static_cast<float>(sum) * own, p.scale[c * groups + g], f);
        }
        results[part] = parts == 3 ? f * (row.a[0] * std::ldexp(1.0f, 14 - 7 * part)) : f;
      }
      y[r * n + c] = (results[0] + (results[1] + results[2])) + p.bias[c];
    }
  }
}

// Kernels may round x to 2**-24 of the largest magnitude of its row.
bool near_float(const Problem& p, const Guarded<float>& y) {
  const auto [m, n, group, groups] = p.shape;
  bool good = true;
  for (int64_t r = 0; r < m; ++r) {
    double amax = 0.0;
    for (int64_t i = 0; i < p.k; ++i) amax = std::fmax(amax, std::fabs(p.x[r * p.k + i]));
    for (int64_t c = 0; c < n; ++c) {
      double sum = p.bias[c], size = std::fabs(sum), step = 0.0;
      for (int64_t i = 0; i < p.k; ++i) {
        const double term = static_cast<double>(p.x[r * p.k + i]) * p.values[static_cast<size_t>(c * p.k + i)] *
                            p.scale[c * groups + i / group];
        sum += term;
        size += std::fabs(term);
        step += std::fabs(p.values[static_cast<size_t>(c * p.k + i)] * p.scale[c * groups + i / group]);
      }
      good &= std::fabs(y[r * n + c] - sum) <= static_cast<double>(p.k + 2) * 0x1p-23 * size + 0x1p-24 * amax * step;
    }
  }
  return good;
}

LinearCall plain(const Problem& p, float* const* y) {
  LinearCall call{};
  call.x = p.x.data();
  call.m = p.shape.m;
  call.bias = p.bias.data();
  call.y = y;
  call.columns = &p.shape.n;
  call.outputs = 1;
  return call;
}

// Everything around the product, relative to the plain result `y` of the same kernels.
void test_around(const Kernels& kernels, const Weight& weight, const Problem& p, const Guarded<float>& y,
                 const std::string& name, Random& random) {
  const int64_t m = p.shape.m, n = p.shape.n, items = m % 3 == 0 ? 3 : m % 2 == 0 ? 2 : 1;
  Guarded<float> out(m * n);
  float* target = out.data();
  LinearCall call = plain(p, &target);
  weight.run(call, thread_pool(3));
  check(out.same_bytes(y), name + ": threads");

  call.gelu = true;
  weight.run(call, serial_pool());
  bool good = true;
  for (int64_t i = 0; i < m * n; ++i) {
    const double x = y[i], right = 0.5 * x * (1.0 + std::tanh(std::sqrt(2.0 / 3.14159265358979324) * (x + 0.044715 * x * x * x)));
    good &= std::fabs(out[i] - right) <= 1.5e-5 * std::fmax(1.0, std::fabs(x));
  }
  check(good, name + ": gelu");

  // Rows for each item, as they are and as columns of wider ones: those end where the tensor ends.
  const Guarded<float> residual = normal(random, m * n);
  call.gelu = false;
  call.residual = residual.data();
  call.gate_rows = items;
  for (const int64_t before : {0, 3}) {
    const int64_t stride = before + n;
    const Guarded<float> gate = normal(random, items * stride);
    call.gate = {gate.data() + before, stride};
    weight.run(call, serial_pool());
    good = true;
    for (int64_t r = 0; r < m; ++r)
      for (int64_t c = 0; c < n; ++c)
        good &= out[r * n + c] == std::fma(gate[r / (m / items) * stride + before + c], y[r * n + c], residual[r * n + c]);
    check(good, name + ": gate");
  }

  if (n > 64) {
    const int64_t columns[2] = {n / 65 * 64, n - n / 65 * 64};
    Guarded<float> first(m * columns[0]), second(m * columns[1]);
    float* const both[2] = {first.data(), second.data()};
    call = plain(p, both);
    call.columns = columns;
    call.outputs = 2;
    weight.run(call, thread_pool(2));
    good = true;
    for (int64_t r = 0; r < m; ++r) {
      good &= std::memcmp(first.data() + r * columns[0], y.data() + r * n, static_cast<size_t>(columns[0]) * 4) == 0;
      good &= std::memcmp(second.data() + r * columns[1], y.data() + r * n + columns[0],
                          static_cast<size_t>(columns[1]) * 4) == 0;
    }
    check(good, name + ": two results");
  }

  // A layer norm in front is the same as rows that are normalised already.
  for (const int64_t before : {0, 5}) {
    const int64_t wide = 2 * p.k + before;  // shift and modulation side by side
    const Guarded<float> rows = normal(random, items * wide);
    const float *const shift = rows.data() + before, *const modulation = shift + p.k;
    Guarded<float> normal_rows(m * p.k), right(m * n);
    for (int64_t r = 0; r < m; ++r) {
      const int64_t item = r / (m / items) * wide;
      kernels.normalize_row({p.x.data() + r * p.k, shift + item, modulation + item, normal_rows.data() + r * p.k, p.k,
                             1e-6f});
    }
    float* const to = right.data();
    call = plain(p, &to);
    call.x = normal_rows.data();
    weight.run(call, serial_pool());
    call = plain(p, &target);
    call.shift = {shift, wide};
    call.modulation = {modulation, wide};
    call.prologue_rows = items;
    call.epsilon = 1e-6f;
    weight.run(call, thread_pool(2));
    check(out.same_bytes(right), name + ": layer norm");
  }
}

}  // namespace

void test_linear(const Kernels& kernels) {
  const int codebooks[][2] = {{2, 1}, {3, 1}, {4, 1}, {16, 1}, {64, 1}, {256, 1},
                              {16, 2}, {64, 2}, {256, 2}, {4, 4}, {256, 4}};
  const Shape shapes[] = {{1, 1, 4, 1},   {13, 65, 20, 3}, {5, 130, 64, 2}, {18, 64, 16, 5},
                          {3, 33, 36, 1}, {9, 17, 128, 1}, {6, 194, 12, 2}, {25, 40, 6, 2}, {7, 70, 33, 4}};
  Random random(2);
  int turn = 0;
  for (const auto& [entries, d] : codebooks)
    for (const Shape& shape : shapes) {
      if (shape.group * shape.groups % d) continue;
      ++turn;
      const Problem p(shape, entries, d, turn % 2, random);
      const std::string name = std::to_string(entries) + "x" + std::to_string(d) + " codes, " +
                               std::to_string(shape.m) + " rows, " + std::to_string(shape.n) + " outputs, " +
                               std::to_string(shape.groups) + " groups of " + std::to_string(shape.group);
      Guarded<float> y(shape.m * shape.n), right(shape.m * shape.n);
      float* const to = y.data();
      for (bool fold : {false, true}) {
        if (fold && shape.groups == 1) continue;
        const Weight weight(p.source(Activation::kInt8, fold), kernels);
        weight.run(plain(p, &to), serial_pool());
        expect_int8(p, fold, right);
        check(y.same_bytes(right), name + (fold ? ", folded" : ""));
        test_around(kernels, weight, p, y, name + (fold ? ", folded" : ""), random);
      }
      for (Activation activation : {Activation::kInt4, Activation::kUint4, Activation::kFp4, Activation::kFp8}) {
        const std::string what = name + ", activations " + std::to_string(static_cast<int>(activation));
        const Weight low(p.source(activation, turn % 3), kernels);
        low.run(plain(p, &to), serial_pool());
        expect_low_bit(p, activation, right);
        check(y.same_bytes(right), what);
        if (turn % 4 == 0) test_around(kernels, low, p, y, what, random);
      }
      const Weight weight(p.source(Activation::kNone, false), kernels);
      weight.run(plain(p, &to), serial_pool());
      check(near_float(p, y), name + ", float");
      test_around(kernels, weight, p, y, name + ", float", random);
    }
  for (int64_t m : {5, 270}) {  // tables of columns; with many rows decoded once
    Problem p({m, 100, 40, 2}, 16, 1, true, random);
    Guarded<int8_t> codebook(3 * 16);
    Guarded<uint8_t> table(100);
    for (int64_t i = 0; i < codebook.size(); ++i) codebook[i] = static_cast<int8_t>(integer(random, -128, 127));
    for (int64_t c = 0; c < 100; ++c) {
      table[c] = static_cast<uint8_t>(integer(random, 0, 2));
      for (int64_t i = 0; i < p.k; ++i) {
        const int code = p.codes[(c * p.k + i) / 2] >> (i % 2 * 4) & 15;
        p.values[static_cast<size_t>(c * p.k + i)] = codebook[16 * table[c] + code];
      }
    }
    Guarded<float> y(m * 100), right(m * 100);
    float* const to = y.data();
    for (Activation activation : {Activation::kInt8, Activation::kFp4}) {
      WeightSource source = p.source(activation, false);
      source.codebook = codebook.data();
      source.tables = 3;
      source.table = table.data();
      const Weight weight(source, kernels);
      weight.run(plain(p, &to), thread_pool(2));
      if (activation == Activation::kInt8) expect_int8(p, false, right);
      else expect_low_bit(p, activation, right);
      check(y.same_bytes(right), "tables of columns, " + std::to_string(m) + " rows");
    }
  }
  {  // more rows than are decoded in registers
    const Problem p({263, 66, 64, 1}, 16, 1, true, random);
    const Weight weight(p.source(Activation::kInt8, false), kernels);
    Guarded<float> y(263 * 66), right(263 * 66);
    float* const to = y.data();
    weight.run(plain(p, &to), thread_pool(2));
    expect_int8(p, false, right);
    check(y.same_bytes(right), "many rows");
  }
  {  // more than one block of rows
    const Problem p({86, 3, 49152, 1}, 256, 1, false, random);
    const Weight weight(p.source(Activation::kNone, false), kernels);
    const Guarded<float> gate = normal(random, 2 * 3), residual = normal(random, 86 * 3);
    Guarded<float> y(86 * 3), gated(86 * 3);
    float* const to[2] = {y.data(), gated.data()};
    LinearCall call = plain(p, to);
    weight.run(call, serial_pool());
    check(near_float(p, y), "blocks of rows");
    call.y = to + 1;
    call.gate = {gate.data(), 3};
    call.residual = residual.data();
    call.gate_rows = 2;
    weight.run(call, thread_pool(2));
    bool good = true;
    for (int64_t i = 0; i < y.size(); ++i) good &= gated[i] == std::fma(gate[i / 129 * 3 + i % 3], y[i], residual[i]);
    check(good, "gate in blocks of rows");
  }
}

}  // namespace selftest
