// The parts of the NEON kernels, one per file.
#pragma once

#include "../core.h"

namespace ditpress {
namespace neon {

constexpr int kColumns = 16;
constexpr int kVector = 16;  // 4 columns of 4 bytes
constexpr int kRows = 5;     // 20 accumulators, 5 vectors of activations and the weights at work

void int8_panel(const Int8Job&);
void sum_row(const SumJob&);
void normalize_row(const NormJob&);
void quantize_row(const RowJob&);
void quantize_groups(const RowJob&, Activation);
void quantize_fp8(const RowJob&);
void residual_row(const ResidualJob&);
void decode(const DecodeJob&);
void widen_half(const uint16_t* half, float* out, int64_t count);
void attention(const AttentionJob&);
void nearest(const NearestJob&);
void best_scales(const ScaleJob&);

}  // namespace neon
}  // namespace ditpress
