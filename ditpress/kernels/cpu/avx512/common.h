// What the AVX-512 files share.
#pragma once

#include <immintrin.h>

#include "../core.h"
#include "../unroll.h"

namespace ditpress {

// The parts of avx512_kernels, one per file; compiled with different flags, hence no inline code.
namespace avx512 {

constexpr int kVector = 64;  // 16 columns of 4 bytes

// Register tiles, rows x vectors of 16 columns. One scale per channel: 6 x 4 int32 accumulators. Groups: int32 and
// float accumulators side by side in registers, 7 x 2 of each (6 x 2 when codes are decoded in registers, which needs
// two more).
constexpr int kChannelRows = 6, kChannelVectors = 4;
constexpr int kGroupRows = 7, kGroupNibbleRows = 6, kGroupVectors = 2;

void int8_panel(const Int8Job&);
void sum_row(const SumJob&);
void normalize_row(const NormJob&);
void quantize_row(const RowJob&);
void quantize_groups(const RowJob&, Activation);
void quantize_fp8(const RowJob&);
void residual_row(const ResidualJob&);
void decode(const DecodeJob&);
void decode_vbmi(const DecodeJob&);  // also needs AVX512_VBMI
void widen_half(const uint16_t* half, float* out, int64_t count);
void attention(const AttentionJob&);
void attention_bf16(const AttentionJob&);  // also needs AVX512_BF16

}  // namespace avx512

namespace {

DITPRESS_INLINE __m512i broadcast_table(const uint8_t* table) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

// The first `count` of 16 lanes.
DITPRESS_INLINE __mmask16 first_lanes(int64_t count) {
  return count >= 16 ? 0xffff : count <= 0 ? 0 : static_cast<__mmask16>((1u << count) - 1);
}

}  // namespace
}  // namespace ditpress
