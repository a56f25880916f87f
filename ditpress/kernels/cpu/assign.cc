// The assignment step of k-means, on the host's threads.
#include "assign.h"

#include <algorithm>
#include <limits>
#include <stdexcept>
#include <string>

#include "buffer.h"

namespace ditpress {
namespace {

// Points of one task: few enough to share them evenly, and the results of two never lie in one cache line for long.
constexpr int64_t kPart = 2048;

thread_local Buffer<float> t_workspace;

}  // namespace

void assign(const AssignCall& call, const Kernels& kernels, const Pool& pool) {
  if (call.length < 1) throw std::invalid_argument("points of k-means have no coordinates");
  if (call.entries < 1 || call.entries > std::numeric_limits<int32_t>::max())
    throw std::invalid_argument("a codebook of " + std::to_string(call.entries) + " codewords, expected 1 to 2^31 - 1");
  Buffer<float> terms(2 * call.entries * call.length);
  for (int64_t i = 0; i < call.entries * call.length; ++i) {
    const float c = call.codebook[i];
    terms.data()[2 * i] = c * c;
    terms.data()[2 * i + 1] = -2.0f * c;
  }
  parallel_for(pool, (call.points + kPart - 1) / kPart, [&](int64_t part, int64_t) {
    t_workspace.reserve(2 * call.length * kNearestTile);
    const int64_t first = part * kPart, at = first * call.length;
    kernels.nearest({call.pull + at, call.pressure + at, terms.data(), std::min(kPart, call.points - first), call.length,
                     call.entries, call.codes + first, call.cost + first, t_workspace.data()});
  });
}

}  // namespace ditpress
