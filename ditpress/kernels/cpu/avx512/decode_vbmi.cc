// Decoding with AVX512_VBMI: byte tables of 64 entries in one register and of 256 in four.
#include "../coding.h"
#include "decode.h"

namespace ditpress {
namespace {

using namespace avx512;

struct Table256 {
  explicit Table256(const uint8_t* bytes) {
    DITPRESS_EACH(4, i) part[i] = _mm512_loadu_si512(bytes + 64 * i); DITPRESS_END
  }
  DITPRESS_INLINE __m512i look_up(__m512i index, __mmask64 upper) const {
    return _mm512_mask_blend_epi8(upper, _mm512_permutex2var_epi8(part[0], index, part[1]),
                                  _mm512_permutex2var_epi8(part[2], index, part[3]));
  }
  __m512i part[4];
};

void trits(const DecodeJob& job) {
  DITPRESS_EACH(5, digit)
    const Table256 table(job.table + 256 * digit);
    for (int64_t v = 0; v < job.vectors; v += 5) {
      const __m512i codes = _mm512_loadu_si512(job.codes + v / 5 * kVector);
      _mm512_storeu_si512(job.bytes + (v + digit) * kVector, table.look_up(codes, _mm512_movepi8_mask(codes)));
    }
  DITPRESS_END
}

void vectors_8x4(const DecodeJob& job) {
  const Table256 plane[4] = {Table256(job.table), Table256(job.table + 256), Table256(job.table + 512),
                             Table256(job.table + 768)};
  for (int64_t v = 0; v < job.vectors; v += 4) {
    const __m512i codes = _mm512_loadu_si512(job.codes + v / 4 * kVector);
    const __mmask64 upper = _mm512_movepi8_mask(codes);
    __m512i p[4];
    DITPRESS_EACH(4, i) p[i] = plane[i].look_up(codes, upper); DITPRESS_END
    const __m512i low01 = _mm512_unpacklo_epi8(p[0], p[1]), high01 = _mm512_unpackhi_epi8(p[0], p[1]);
    const __m512i low23 = _mm512_unpacklo_epi8(p[2], p[3]), high23 = _mm512_unpackhi_epi8(p[2], p[3]);
    uint8_t* const bytes = job.bytes + v * kVector;
    _mm512_storeu_si512(bytes, _mm512_unpacklo_epi16(low01, low23));
    _mm512_storeu_si512(bytes + kVector, _mm512_unpackhi_epi16(low01, low23));
    _mm512_storeu_si512(bytes + 2 * kVector, _mm512_unpacklo_epi16(high01, high23));
    _mm512_storeu_si512(bytes + 3 * kVector, _mm512_unpackhi_epi16(high01, high23));
  }
}

void vectors_6x2(const DecodeJob& job) {
  const __m512i plane[2] = {_mm512_loadu_si512(job.table), _mm512_loadu_si512(job.table + 64)};
  const __m512i two = _mm512_set1_epi8(3);
  for (int64_t v = 0, unit = 0; v < job.vectors; v += 8, ++unit) {
    const uint8_t* from = job.codes + unit * 3 * kVector;
    __m512i codes[4];
    DITPRESS_EACH(3, i) codes[i] = _mm512_loadu_si512(from + i * kVector); DITPRESS_END
    // the fourth 64 codes lie in the high bits of the three, which look_up ignores
    codes[3] = _mm512_and_si512(_mm512_srli_epi16(codes[0], 6), two);
    codes[3] = _mm512_or_si512(
        codes[3], _mm512_slli_epi16(_mm512_and_si512(_mm512_srli_epi16(codes[1], 6), two), 2));
    codes[3] = _mm512_or_si512(
        codes[3], _mm512_slli_epi16(_mm512_and_si512(_mm512_srli_epi16(codes[2], 6), two), 4));
    DITPRESS_EACH(4, q)
      const __m512i first = _mm512_permutexvar_epi8(codes[q], plane[0]);
      const __m512i second = _mm512_permutexvar_epi8(codes[q], plane[1]);
      uint8_t* const bytes = job.bytes + (v + 2 * q) * kVector;
      _mm512_storeu_si512(bytes, _mm512_unpacklo_epi8(first, second));
      _mm512_storeu_si512(bytes + kVector, _mm512_unpackhi_epi8(first, second));
    DITPRESS_END
  }
}

}  // namespace

void avx512::decode_vbmi(const DecodeJob& job) {
  switch (job.coding) {
    case Coding::kTrits: trits(job); break;
    case Coding::kVector8x4: vectors_8x4(job); break;
    case Coding::kVector6x2: vectors_6x2(job); break;
    default: return decode(job);
  }
  if (job.fold) fold_bytes(job);
}

}  // namespace ditpress
