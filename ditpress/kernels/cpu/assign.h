// The assignment step of k-means.
#pragma once

#include "core.h"
#include "pool.h"

namespace ditpress {

// For every point the codeword c of least sum_i pressure c^2 - 2 pull c (of equal ones the first) and that cost. A point
// all of whose costs are infinite or no number gets code 0 and an infinite cost.
struct AssignCall {
  const float *pull, *pressure;  // [points][length]
  int64_t points, length;
  const float* codebook;  // [entries][length]
  int64_t entries;
  int64_t* codes;  // [points]
  float* cost;     // [points]
};

// Throws std::invalid_argument, std::bad_alloc.
void assign(const AssignCall& call, const Kernels& kernels, const Pool& pool);

}  // namespace ditpress
