// How codes of less than a byte, or of several weights, lie in a panel.
//
// A panel is a sequence of vectors of bytes; with `Lanes` of 16 bytes a vector holds 4 * lanes columns of 4 bytes along
// K. Codes come in units:
//   kNibbles    1 vector of codes -> 2 vectors: low nibbles, high nibbles
//   kPairs      1 -> 4: bits 0-1, 2-3, 4-5, 6-7
//   kTrits      1 -> 5: the digits of the byte in base 3, lowest first
//   kVector8x4  1 -> 4: a byte is the code of 4 consecutive k of one column; in every lane, bytes 4o .. 4o+3 are the
//               codes of the four columns of vector o (what in-lane unpacking gives)
//   kVector6x2  3 -> 8: 64 codes in the low 6 bits of each vector, 64 more in the two high bits of all three, 2 k per
//               code; in every lane, bytes 8o .. 8o+7 of the codes q give vector 2q + o
// Tables: one plane for each byte of the vector that a code stands for, 256 (kTrits: digit planes; kVector8x4), 64
// (kVector6x2) or 16 (kNibbles, kPairs: 4 entries, repeated) bytes long.
#pragma once

#include "core.h"

namespace ditpress {
namespace {

constexpr int unit_in(Coding coding) { return coding == Coding::kVector6x2 ? 3 : 1; }

constexpr int unit_out(Coding coding) {
  switch (coding) {
    case Coding::kNibbles: return 2;
    case Coding::kPairs: return 4;
    case Coding::kTrits: return 5;
    case Coding::kVector8x4: return 4;
    case Coding::kVector6x2: return 8;
    default: return 1;
  }
}

constexpr int kTableBytes = 5 * 256;  // of the largest table

// Bytes of codes for `vectors` vectors of bytes.
constexpr int64_t coded_bytes(Coding coding, int64_t vectors, int vector_bytes) {
  return (vectors + unit_out(coding) - 1) / unit_out(coding) * unit_in(coding) * vector_bytes;
}

// One unit, one byte at a time: what every faster decoder must equal.
inline void decode_unit(Coding coding, const uint8_t* codes, const uint8_t* table, uint8_t* bytes, int vector_bytes) {
  for (int i = 0; i < vector_bytes; ++i) {
    const int lane = i / 16 * 16, place = i % 16;
    switch (coding) {
      case Coding::kBytes: bytes[i] = codes[i]; break;
      case Coding::kNibbles:
        for (int o = 0; o < 2; ++o) bytes[o * vector_bytes + i] = table[codes[i] >> 4 * o & 15];
        break;
      case Coding::kPairs:
        for (int o = 0; o < 4; ++o) bytes[o * vector_bytes + i] = table[codes[i] >> 2 * o & 3];
        break;
      case Coding::kTrits:
        for (int o = 0; o < 5; ++o) bytes[o * vector_bytes + i] = table[o * 256 + codes[i]];
        break;
      case Coding::kVector8x4:
        for (int o = 0; o < 4; ++o)
          bytes[o * vector_bytes + i] = table[place % 4 * 256 + codes[lane + o * 4 + place / 4]];
        break;
      case Coding::kVector6x2:
        for (int o = 0; o < 8; ++o) {
          const int at = lane + o % 2 * 8 + place / 2, q = o / 2;
          int code = codes[(q < 3 ? q : 0) * vector_bytes + at] & 63;
          if (q == 3)
            code = codes[at] >> 6 | codes[vector_bytes + at] >> 6 << 2 | codes[2 * vector_bytes + at] >> 6 << 4;
          bytes[o * vector_bytes + i] = table[place % 2 * 64 + code];
        }
        break;
    }
  }
}

}  // namespace
}  // namespace ditpress
