// Codes of a panel to bytes in plain C++, for codings without a decoder of the instruction set.
#pragma once

#include <cstring>

#include "coding.h"

namespace ditpress {
namespace {

// The vectors of `d` bytes that codes stand for, out of their planes.
inline void interleave_planes(const uint8_t* table, int entries, int d, uint8_t* vectors) {
  for (int code = 0; code < entries; ++code)
    for (int i = 0; i < d; ++i) vectors[code * d + i] = table[i * entries + code];
}

inline void decode_vectors_8x4(const uint8_t* codes, const uint8_t* vectors, uint8_t* bytes, int vector_bytes) {
  for (int lane = 0; lane < vector_bytes; lane += 16)
    for (int i = 0; i < 16; ++i)
      std::memcpy(bytes + i / 4 * vector_bytes + lane + i % 4 * 4, vectors + codes[lane + i] * 4, 4);
}

inline void decode_vectors_6x2(const uint8_t* codes, const uint8_t* vectors, uint8_t* bytes, int vector_bytes) {
  for (int i = 0; i < vector_bytes; ++i) {
    uint8_t* const to = bytes + i % 16 / 8 * vector_bytes + i / 16 * 16 + i % 8 * 2;
    int last = 0;
    for (int q = 0; q < 3; ++q) {
      const int byte = codes[q * vector_bytes + i];
      std::memcpy(to + 2 * q * vector_bytes, vectors + (byte & 63) * 2, 2);
      last |= byte >> 6 << 2 * q;
    }
    std::memcpy(to + 6 * vector_bytes, vectors + last * 2, 2);
  }
}

// Without folding.
inline void decode_generic(const DecodeJob& job, int vector_bytes) {
  const int in = unit_in(job.coding), out = unit_out(job.coding);
  uint8_t vectors[256 * 4];
  if (job.coding == Coding::kVector8x4) interleave_planes(job.table, 256, 4, vectors);
  if (job.coding == Coding::kVector6x2) interleave_planes(job.table, 64, 2, vectors);
  const uint8_t* codes = job.codes;
  uint8_t* bytes = job.bytes;
  for (int64_t v = 0; v < job.vectors; v += out, codes += in * vector_bytes, bytes += out * vector_bytes) {
    switch (job.coding) {
      case Coding::kVector8x4: decode_vectors_8x4(codes, vectors, bytes, vector_bytes); break;
      case Coding::kVector6x2: decode_vectors_6x2(codes, vectors, bytes, vector_bytes); break;
      default: decode_unit(job.coding, codes, job.table, bytes, vector_bytes); break;
    }
  }
}

}  // namespace
}  // namespace ditpress
