// What happens to one value of a result before it is stored, in plain C++.
#pragma once

#include <cmath>

#include "core.h"

namespace ditpress {
namespace {

// GELU in its tanh form: Hendrycks and Gimpel 2016.
inline float gelu(float x) {
  return 0.5f * x * (1.0f + std::tanh(0.79788456f * (x + 0.044715f * x * x * x)));
}

// y of row `r` of the job and column `n` of the panel.
inline float finish(const Epilogue& e, float y, int64_t r, int n) {
  if (e.gelu) return gelu(y);
  if (e.gate) return std::fma(e.gate[(e.gate_first + r) / e.gate_rows * e.gate_stride + n], y, e.residual[r * e.stride + n]);
  return y;
}

inline void sum_row_generic(const SumJob& job) {
  for (int n = 0; n < job.columns; ++n) {
    const float sum = job.parts[0][n] + (job.parts[1][n] + job.parts[2][n]);
    job.y[n] = finish(job.epilogue, sum + job.bias[n], job.row, n);
  }
}

}  // namespace
}  // namespace ditpress
