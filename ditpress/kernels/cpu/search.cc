// The search for the scales of a weight, on the host's threads.
#include "search.h"

#include <algorithm>
#include <stdexcept>
#include <string>

namespace ditpress {
namespace {

constexpr int64_t kPart = 8192;  // weights of one task, a few groups at least

}  // namespace

void search_scales(const ScaleJob& job, const Kernels& kernels, const Pool& pool) {
  if (job.group < 1 || job.tried < 1)
    throw std::invalid_argument("groups of " + std::to_string(job.group) + " weights with " +
                                std::to_string(job.tried) + " scales to try, expected 1 or more of each");
  if (!(job.low >= -128 && job.low <= job.high && job.high <= 128))
    throw std::invalid_argument("values from " + std::to_string(job.low) + " to " + std::to_string(job.high) +
                                ", expected them within -128 and 128, in this order");
  if (job.importance && job.importance_rows < 1)
    throw std::invalid_argument("importance of " + std::to_string(job.importance_rows) + " groups, expected 1 or more");
  const int64_t step = std::max<int64_t>(1, kPart / job.group);
  parallel_for(pool, (job.groups + step - 1) / step, [&](int64_t part, int64_t) {
    ScaleJob own = job;
    own.first = part * step;
    own.groups = std::min(step, job.groups - own.first);
    own.weight += own.first * job.group;
    own.scale += own.first * job.tried;
    own.best += own.first;
    own.error += own.first;
    kernels.best_scales(own);
  });
}

}  // namespace ditpress
