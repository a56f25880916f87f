// The search for the scales of a weight.
#pragma once

#include "core.h"
#include "pool.h"

namespace ditpress {

// job.first is 0. Throws std::invalid_argument, std::bad_alloc.
void search_scales(const ScaleJob& job, const Kernels& kernels, const Pool& pool);

}  // namespace ditpress
