// Loading weight bytes, and decoding nibbles in registers.
#pragma once

#include "common.h"

namespace ditpress {
namespace {

// Two vectors of weight bytes from one vector of codes. As an asm statement for the reason given at row_step.
DITPRESS_INLINE void decode_pair(const uint8_t* packed, __m512i table, __m512i mask, __m512i& low, __m512i& high) {
  using Codes = uint8_t[avx512::kVector];
  asm volatile(
      "vpandd %[codes], %[mask], %[low]\n\t"
      "vpsrlw $4, %[codes], %[high]\n\t"
      "vpandd %[high], %[mask], %[high]\n\t"
      "vpshufb %[low], %[table], %[low]\n\t"
      "vpshufb %[high], %[table], %[high]"
      : [low] "=&v"(low), [high] "=&v"(high)
      : [codes] "m"(*reinterpret_cast<const Codes*>(packed)), [mask] "v"(mask), [table] "v"(table));
}

// `Vectors` vectors of weight bytes for one quad of k.
template <int Vectors, bool Nibbles>
DITPRESS_INLINE void load_weights(const uint8_t* w, __m512i table, __m512i (&b)[Vectors]) {
  if constexpr (Nibbles) {
    const __m512i mask = _mm512_set1_epi8(15);
    DITPRESS_EACH(Vectors / 2, j)
      decode_pair(w + j * avx512::kVector, table, mask, b[2 * j], b[2 * j + 1]);
    DITPRESS_END
  } else {
    DITPRESS_EACH(Vectors, v) b[v] = _mm512_loadu_si512(w + v * avx512::kVector); DITPRESS_END
  }
}

}  // namespace
}  // namespace ditpress
