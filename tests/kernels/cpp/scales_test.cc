// The search for scales against float64.
#include <cmath>

#include "search.h"
#include "support.h"

namespace selftest {
namespace {

using namespace ditpress;

// The value nearest to x at floor(2 x) - 2 low, of two the upper one.
std::vector<float> halves(const std::vector<double>& table) {
  std::vector<float> values;
  for (int half = static_cast<int>(2 * table.front()); half <= static_cast<int>(2 * table.back()); ++half) {
    const double middle = (half + 0.5) / 2;
    double best = table.front();
    for (const double value : table)
      if (std::fabs(middle - value) < std::fabs(middle - best)) best = value;
    values.push_back(static_cast<float>(best));
  }
  return values;
}

void test_shape(const Kernels& kernels, int64_t groups, int64_t group, int64_t tried, const std::vector<double>& table,
                bool uniform, bool weighted, Random& random) {
  const Guarded<float> weight = normal(random, groups * group), values(halves(table));
  Guarded<float> scale = normal(random, groups * tried), importance = normal(random, 2 * group);
  for (int64_t i = 0; i < scale.size(); ++i)
    scale[i] = static_cast<float>((0.1 + std::fabs(scale[i])) / table.back());
  for (int64_t i = 0; i < importance.size(); ++i) importance[i] = std::fabs(importance[i]);
  Guarded<int64_t> best(groups), best_again(groups);
  Guarded<float> error(groups), error_again(groups);
  ScaleJob job = {};
  job.weight = weight.data();
  job.scale = scale.data();
  job.importance = weighted ? importance.data() : nullptr;
  job.importance_rows = weighted ? 2 : 0;
  job.groups = groups;
  job.group = group;
  job.tried = tried;
  job.low = static_cast<float>(table.front());
  job.high = static_cast<float>(table.back());
  job.values = uniform ? nullptr : values.data();
  job.best = best.data();
  job.error = error.data();
  search_scales(job, kernels, serial_pool());
  bool good = true;
  for (int64_t g = 0; g < groups; ++g) {
    double least = INFINITY, own = INFINITY;
    for (int64_t t = 0; t < tried; ++t) {
      double sum = 0.0;
      for (int64_t i = 0; i < group; ++i) {
        double nearest = INFINITY;
        for (const double value : table)
          nearest = std::fmin(nearest, std::fabs(scale[g * tried + t] * value - weight[g * group + i]));
        sum += nearest * nearest * (weighted ? importance[g % 2 * group + i] : 1.0);
      }
      least = std::fmin(least, sum);
      if (t == best[g]) own = sum;
    }
    const double bound = 1e-5 * own + 1e-6 * static_cast<double>(group);
    good &= own - least <= bound && std::fabs(error[g] - own) <= bound;
  }
  const std::string name = "best of " + std::to_string(tried) + " scales for " + std::to_string(groups) +
                           " groups of " + std::to_string(group) + (uniform ? "" : ", table") +
                           (weighted ? ", weighted" : "");
  check(good, name);
  job.best = best_again.data();
  job.error = error_again.data();
  search_scales(job, kernels, thread_pool(3));
  check(best.same_bytes(best_again) && error.same_bytes(error_again), name + ", threads");
}

}  // namespace

void test_scales(const Kernels& kernels) {
  Random random(5);
  std::vector<double> whole;
  for (int i = -8; i <= 7; ++i) whole.push_back(i);
  const std::vector<double> fp4 = {-12, -8, -6, -4, -3, -2, -1, 0, 1, 2, 3, 4, 6, 8, 12}, odd = {-127, -5, 1, 90};
  for (const bool weighted : {false, true}) {
    test_shape(kernels, 1, 1, 1, whole, true, weighted, random);
    test_shape(kernels, 300, 64, 41, whole, true, weighted, random);
    test_shape(kernels, 17, 13, 5, whole, true, weighted, random);
    test_shape(kernels, 40, 64, 9, fp4, false, weighted, random);
    test_shape(kernels, 9, 31, 3, odd, false, weighted, random);
  }
}

}  // namespace selftest
