// The assignment step of k-means against float64.
#include <cmath>

#include "assign.h"
#include "support.h"

namespace selftest {
namespace {

using namespace ditpress;

void test_shape(const Kernels& kernels, int64_t points, int64_t length, int64_t entries, Random& random) {
  const Guarded<float> pull = normal(random, points * length), codebook = normal(random, entries * length);
  Guarded<float> pressure = normal(random, points * length);
  for (int64_t i = 0; i < pressure.size(); ++i) pressure[i] = std::fmax(pressure[i], 0.0f);
  Guarded<int64_t> codes(points), codes_again(points);
  Guarded<float> cost(points), cost_again(points);
  AssignCall call{pull.data(),     pressure.data(), points,       length,
                  codebook.data(), entries,         codes.data(), cost.data()};
  assign(call, kernels, serial_pool());
  bool good = true;
  for (int64_t p = 0; p < points; ++p) {
    double least = INFINITY, own = INFINITY, size = 1.0;
    for (int64_t e = 0; e < entries; ++e) {
      double sum = 0.0;
      for (int64_t i = 0; i < length; ++i) {
        const double c = codebook[e * length + i], square = pressure[p * length + i] * c * c;
        const double linear = 2.0 * pull[p * length + i] * c;
        sum += square - linear;
        size = std::fmax(size, square + std::fabs(linear));
      }
      least = std::fmin(least, sum);
      if (e == codes[p]) own = sum;
    }
    const double bound = 1e-6 * size * static_cast<double>(length);
    good &= own - least <= bound && std::fabs(cost[p] - own) <= bound;
  }
  const std::string name = "nearest of " + std::to_string(entries) + " codewords of " + std::to_string(length) + " for " +
                           std::to_string(points) + " points";
  check(good, name);
  call.codes = codes_again.data();
  call.cost = cost_again.data();
  assign(call, kernels, thread_pool(3));
  check(codes.same_bytes(codes_again) && cost.same_bytes(cost_again), name + ", threads");
}

}  // namespace

void test_nearest(const Kernels& kernels) {
  Random random(4);
  test_shape(kernels, 1, 1, 1, random);
  test_shape(kernels, 33, 4, 256, random);
  test_shape(kernels, 4099, 2, 64, random);
  test_shape(kernels, 64, 7, 5, random);
  test_shape(kernels, 31, 33, 9, random);
}

}  // namespace selftest
