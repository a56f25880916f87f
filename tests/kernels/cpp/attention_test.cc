// Attention against float64.
#include <cmath>

#include "attend.h"
#include "support.h"

namespace selftest {
namespace {

using namespace ditpress;

enum class Mask { kNone, kKeys, kFull, kQueries };

struct Shape {
  int64_t batch, heads, queries, keys, width;
  Mask mask;
};

std::vector<double> expected(const AttentionCall& call) {
  const int64_t row = call.heads * call.width;
  std::vector<double> y(static_cast<size_t>(call.batch * call.queries * row)), p(static_cast<size_t>(call.keys));
  for (int64_t b = 0; b < call.batch; ++b)
    for (int64_t h = 0; h < call.heads; ++h)
      for (int64_t t = 0; t < call.queries; ++t) {
        const float* q = call.q + (b * call.queries + t) * row + h * call.width;
        double top = -INFINITY, sum = 0.0;
        for (int64_t s = 0; s < call.keys; ++s) {
          const float* k = call.k + (b * call.keys + s) * row + h * call.width;
          double dot = 0.0;
          for (int64_t i = 0; i < call.width; ++i) dot += static_cast<double>(q[i]) * k[i];
          dot *= call.scale;
          if (call.mask)
            dot += call.mask[b * call.mask_stride[0] + h * call.mask_stride[1] + t * call.mask_stride[2] +
                             s * call.mask_stride[3]];
          p[static_cast<size_t>(s)] = dot;
          top = std::fmax(top, dot);
        }
        for (double& value : p) sum += value = std::exp(value - top);
        for (int64_t s = 0; s < call.keys; ++s)
          for (int64_t i = 0; i < call.width; ++i)
            y[static_cast<size_t>((b * call.queries + t) * row + h * call.width + i)] +=
                p[static_cast<size_t>(s)] / sum * call.v[(b * call.keys + s) * row + h * call.width + i];
      }
  return y;
}

void test_shape(const Kernels& kernels, const Shape& shape, Random& random) {
  const int64_t row = shape.heads * shape.width;
  const Guarded<float> q = normal(random, shape.batch * shape.queries * row);
  const Guarded<float> k = normal(random, shape.batch * shape.keys * row);
  const Guarded<float> v = normal(random, shape.batch * shape.keys * row);
  const bool full = shape.mask == Mask::kFull, by_key = full || shape.mask == Mask::kKeys;
  const bool by_query = full || shape.mask == Mask::kQueries;
  const int64_t of_key = by_key ? shape.keys : 1, of_query = by_query ? shape.queries : 1;
  Guarded<float> mask = normal(random, shape.batch * (full ? shape.heads : 1) * of_query * of_key);
  for (int64_t i = 0; by_key && i < mask.size(); ++i)  // one key of three is hidden, never the first
    if (i % of_key % 3 == 2) mask[i] = i % 2 ? -INFINITY : -1e4f;
  Guarded<float> y(shape.batch * shape.queries * row), again(y.size());
  AttentionCall call{q.data(), k.data(), v.data(), shape.mask == Mask::kNone ? nullptr : mask.data(), {}, shape.batch,
                     shape.heads, shape.queries, shape.keys, shape.width,
                     1.0f / std::sqrt(static_cast<float>(shape.width)), false, y.data()};
  call.mask_stride[3] = by_key ? 1 : 0;
  call.mask_stride[2] = by_query ? of_key : 0;
  call.mask_stride[1] = full ? of_query * of_key : 0;
  call.mask_stride[0] = mask.size() / shape.batch;
  const std::vector<double> right = expected(call);
  const std::string name = "attention of " + std::to_string(shape.queries) + " queries, " +
                           std::to_string(shape.keys) + " keys, width " + std::to_string(shape.width);
  const auto within = [&](double bound) {
    bool good = true;
    for (int64_t i = 0; i < y.size(); ++i) good &= std::fabs(y[i] - right[static_cast<size_t>(i)]) <= bound;
    return good;
  };
  attend(call, kernels, serial_pool());
  check(within(1e-5), name);
  call.y = again.data();
  attend(call, kernels, thread_pool(3));
  check(again.same_bytes(y), name + ", threads");
  if (!kernels.attention_bf16) return;
  call.y = y.data();
  call.bf16 = true;
  attend(call, kernels, serial_pool());
  check(within(5e-2), name + ", bfloat16");
}

}  // namespace

void test_attention(const Kernels& kernels) {
  Random random(3);
  for (const Shape& shape : std::initializer_list<Shape>{{1, 1, 1, 1, 1, Mask::kNone},
                                                         {1, 2, 7, 5, 64, Mask::kKeys},
                                                         {2, 2, 33, 77, 40, Mask::kFull},
                                                         {2, 3, 16, 16, 72, Mask::kNone},
                                                         {1, 2, 11, 130, 33, Mask::kKeys},
                                                         {1, 1, 9, 64, 256, Mask::kQueries},
                                                         {3, 1, 13, 17, 3, Mask::kFull},
                                                         {1, 1, 65, 31, 10, Mask::kNone}})
    test_shape(kernels, shape, random);
}

}  // namespace selftest
