// Codes of a panel to bytes.
#include "../coding.h"
#include "decode.h"
#include "weights.h"

namespace ditpress {
namespace {

using namespace avx512;

template <bool Fold>
void nibbles(const DecodeJob& job) {
  const Folding<Fold> folding(job.fold);
  const __m512i table = broadcast_table(job.table);
  const uint8_t* codes = job.codes;
  uint8_t* bytes = job.bytes;
  for (int64_t v = 0; v < job.vectors; v += kChannelVectors, codes += 2 * kVector, bytes += 4 * kVector) {
    __m512i b[4];
    load_weights<4, true>(codes, table, b);
    DITPRESS_EACH(4, i) _mm512_storeu_si512(bytes + i * kVector, folding.template apply<i>(b[i])); DITPRESS_END
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
