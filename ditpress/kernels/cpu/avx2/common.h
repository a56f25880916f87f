// The parts of the AVX2 kernels, one per file. AVX-VNNI takes over all but the integer product; its files are compiled
// with other flags, hence no inline code here.
#pragma once

#include "../core.h"

namespace ditpress {
namespace avx2 {

constexpr int kColumns = 16;
constexpr int kVector = 32;  // 8 columns of 4 bytes
constexpr int kRows = 4;     // 8 accumulators, 2 vectors of weights and 2 of magnitudes, ones, 2 at work

void int8_panel(const Int8Job&);   // weights as they are
void small_panel(const Int8Job&);  // weights + kSmallest or kSmall
void sum_row(const SumJob&);
void normalize_row(const NormJob&);
void quantize_row(const RowJob&);
void quantize_groups(const RowJob&, Activation);
void quantize_fp8(const RowJob&);
void residual_row(const ResidualJob&);
void decode(const DecodeJob&);         // into bytes of the value
void decode_offset(const DecodeJob&);  // into bytes of the value + 128
void widen_half(const uint16_t* half, float* out, int64_t count);
void attention(const AttentionJob&);
void nearest(const NearestJob&);
void best_scales(const ScaleJob&);

}  // namespace avx2
}  // namespace ditpress
