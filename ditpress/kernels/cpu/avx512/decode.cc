// Codes of a panel to bytes.
#include "../coding.h"
#include "decode.h"
#include "weights.h"

namespace ditpress {
namespace {

using namespace avx512;

constexpr int kAhead = 2048;  // bytes of codes that are on their way

template <bool Fold>
void nibbles(const DecodeJob& job) {
  const Folding<Fold> folding(job.fold);
  const __m512i table = broadcast_table(job.table);
  const uint8_t* codes = job.codes;
  uint8_t* bytes = job.bytes;
  for (int64_t v = 0; v < job.vectors; v += kChannelVectors, codes += 2 * kVector, bytes += 4 * kVector) {
    __m512i b[4];
    DITPRESS_EACH(2, j)
      _mm_prefetch(reinterpret_cast<const char*>(codes + kAhead + j * kVector), _MM_HINT_T0);
    DITPRESS_END
    load_weights<4, true>(codes, table, b);
    DITPRESS_EACH(4, i) _mm512_storeu_si512(bytes + i * kVector, folding.template apply<i>(b[i])); DITPRESS_END
  }
}

// Every column by its own table: looked up in each, and kept from the one that is the column's.
template <bool Fold>
void nibbles_of_tables(const DecodeJob& job) {
  const Folding<Fold> folding(job.fold);
  const __m512i mask = _mm512_set1_epi8(15);
  __m512i select[4];
  DITPRESS_EACH(4, i)
    const __m128i columns = _mm_loadu_si128(reinterpret_cast<const __m128i*>(job.select + 16 * i));
    select[i] = _mm512_mullo_epi32(_mm512_cvtepu8_epi32(columns), _mm512_set1_epi32(0x01010101));
  DITPRESS_END
  for (int64_t v = 0; v < job.vectors; v += 4) {
    __m512i index[4], b[4];
    DITPRESS_EACH(2, j)
      const __m512i codes = _mm512_loadu_si512(job.codes + (v / 2 + j) * kVector);
      index[2 * j] = _mm512_and_si512(codes, mask);
      index[2 * j + 1] = _mm512_and_si512(_mm512_srli_epi16(codes, 4), mask);
    DITPRESS_END
    DITPRESS_EACH(4, i) b[i] = _mm512_shuffle_epi8(broadcast_table(job.table), index[i]); DITPRESS_END
    for (int t = 1; t < job.tables; ++t) {
      const __m512i table = broadcast_table(job.table + 16 * t), own = _mm512_set1_epi8(static_cast<char>(t));
      DITPRESS_EACH(4, i)
        b[i] = _mm512_mask_shuffle_epi8(b[i], _mm512_cmpeq_epi8_mask(select[i], own), table, index[i]);
      DITPRESS_END
    }
    DITPRESS_EACH(4, i) _mm512_storeu_si512(job.bytes + (v + i) * kVector, folding.template apply<i>(b[i])); DITPRESS_END
  }
}

// 4 entries fit the table of a byte shuffle four times over.
template <bool Fold>
void pairs(const DecodeJob& job) {
  const Folding<Fold> folding(job.fold);
  const __m512i table = broadcast_table(job.table), mask = _mm512_set1_epi8(3);
  for (int64_t v = 0; v < job.vectors; v += 4) {
    const __m512i codes = _mm512_loadu_si512(job.codes + v / 4 * kVector);
    DITPRESS_EACH(4, i)
      const __m512i index = _mm512_and_si512(_mm512_srli_epi16(codes, 2 * i), mask);
      const __m512i b = _mm512_shuffle_epi8(table, index);
      _mm512_storeu_si512(job.bytes + (v + i) * kVector, folding.template apply<i>(b));
    DITPRESS_END
  }
}

}  // namespace

void avx512::decode(const DecodeJob& job) {
  if (job.select) return job.fold ? nibbles_of_tables<true>(job) : nibbles_of_tables<false>(job);
  switch (job.coding) {
    case Coding::kNibbles: return job.fold ? nibbles<true>(job) : nibbles<false>(job);
    case Coding::kPairs: return job.fold ? pairs<true>(job) : pairs<false>(job);
    default: break;
  }
  const int in = unit_in(job.coding), out = unit_out(job.coding);
  for (int64_t v = 0, unit = 0; v < job.vectors; v += out, ++unit)
    decode_unit(job.coding, job.codes + unit * in * kVector, job.table, job.bytes + v * kVector, kVector);
  if (job.fold) fold_bytes(job);
}

}  // namespace ditpress
