// AVX-512 with VNNI. vpdpbusd adds four products of unsigned bytes (weights + 128) and signed bytes (activations) to an
// int32. The 128 too much per weight is taken back before the sum starts: accumulators begin at -128 * (sum of the
// activations of the group), so neither zero points nor column sums are stored, whatever the codebook.
#include "epilogue.h"
#include "fetch.h"
#include "weights.h"

namespace ditpress {
namespace {

using namespace avx512;

// Four bytes of one row against all vectors. As an asm statement because gcc 12 otherwise moves or spills accumulators
// inside the loop; the instructions are those of the intrinsics.
template <int Vectors>
DITPRESS_INLINE void row_step(const int8_t* a, const __m512i (&b)[Vectors], __m512i (&c)[Vectors]) {
  static_assert(Vectors == 2 || Vectors == 4, "row_step is written for 2 and 4 vectors");
  using Four = int8_t[4];
  const Four& four = *reinterpret_cast<const Four*>(a);
  __m512i value;
  if constexpr (Vectors == 4) {
    asm volatile(
        "vpbroadcastd %[a], %[value]\n\t"
        "vpdpbusd %[value], %[b0], %[c0]\n\t"
        "vpdpbusd %[value], %[b1], %[c1]\n\t"
        "vpdpbusd %[value], %[b2], %[c2]\n\t"
        "vpdpbusd %[value], %[b3], %[c3]"
        : [c0] "+v"(c[0]), [c1] "+v"(c[1]), [c2] "+v"(c[2]), [c3] "+v"(c[3]), [value] "=&v"(value)
        : [b0] "v"(b[0]), [b1] "v"(b[1]), [b2] "v"(b[2]), [b3] "v"(b[3]), [a] "m"(four));
  } else {
    asm volatile(
        "vpbroadcastd %[a], %[value]\n\t"
        "vpdpbusd %[value], %[b0], %[c0]\n\t"
        "vpdpbusd %[value], %[b1], %[c1]"
        : [c0] "+v"(c[0]), [c1] "+v"(c[1]), [value] "=&v"(value)
        : [b0] "v"(b[0]), [b1] "v"(b[1]), [a] "m"(four));
  }
}

// How far ahead of their use weights are fetched that come from memory.
constexpr int kStreamAhead = 4096;

// acc += activations x weights over `chunks` chunks of 16 k. `Stream`: the weights come from memory and are used once.
template <int Rows, int Vectors, bool Nibbles, bool Stream>
DITPRESS_INLINE void multiply(const int8_t* a, const uint8_t* w, int64_t chunks, __m512i table, Fetch& fetch,
                              __m512i (&acc)[Rows][Vectors]) {
  constexpr int kQuad = Vectors * kVector / (Nibbles ? 2 : 1);
  const int8_t* const end = a + chunks * Rows * kChunk;
  do {
    if constexpr (!Stream) fetch.one();
    DITPRESS_EACH(4, quad)
      __m512i b[Vectors];
      if constexpr (Stream)
        for (int line = 0; line < kQuad; line += 64)
          _mm_prefetch(reinterpret_cast<const char*>(w + quad * kQuad + line + kStreamAhead), _MM_HINT_T0);
      load_weights<Vectors, Nibbles>(w + quad * kQuad, table, b);
      DITPRESS_EACH(Rows, r) row_step<Vectors>(a + r * kChunk + quad * 4, b, acc[r]); DITPRESS_END
    DITPRESS_END
    a += Rows * kChunk;
    w += 4 * kQuad;
  } while (a != end);
}

// What `rows` rows from `row` on will write, and the residual that they will read.
template <int Vectors, Finish How>
void fetch_ends(const Int8Job& job, int64_t row, int64_t rows, Fetch& fetch) {
  for (int64_t r = row; r < row + rows; ++r)
    for (int v = 0; v < Vectors; ++v) {
      fetch.add(job.y + r * job.y_stride + 16 * v);
      if constexpr (How == Finish::kGate) fetch.add(job.epilogue.residual + r * job.epilogue.stride + 16 * v);
    }
}

// Grouped: a scale for every group of weights. Scaled: and one for every group of a row.
template <int Rows, int Vectors, bool Grouped, bool Nibbles, bool Stream, Finish How, bool Scaled>
__attribute__((noinline)) void int8_tile(const Int8Job& job, int64_t row, Fetch& fetch) {
  const int64_t chunks = job.group_chunks;
  const int8_t* a = job.activations + row * job.groups * chunks * kChunk;
  const uint8_t* w = job.weights;
  const int32_t* start = job.start + row;
  const __m512i table = Nibbles ? broadcast_table(job.table) : _mm512_setzero_si512();
  const float* scale = job.scale;
  const float* row_scale = job.row_scale + row;
  __m512 f[Rows][Vectors];
  if constexpr (Grouped) {
    DITPRESS_EACH(Rows, r) DITPRESS_EACH(Vectors, v) f[r][v] = _mm512_setzero_ps(); DITPRESS_END DITPRESS_END
  }
  int64_t g = job.groups;
  do {
    __m512i acc[Rows][Vectors];
    DITPRESS_EACH(Rows, r)
      const __m512i first = _mm512_set1_epi32(start[r]);
      DITPRESS_EACH(Vectors, v) acc[r][v] = first; DITPRESS_END
    DITPRESS_END
    multiply<Rows, Vectors, Nibbles, Stream>(a, w, chunks, table, fetch, acc);
    DITPRESS_EACH(Vectors, v)
      const __m512 s = _mm512_loadu_ps(scale + 16 * v);
      DITPRESS_EACH(Rows, r)
        __m512 sum = _mm512_cvtepi32_ps(acc[r][v]);
        if constexpr (Scaled) sum = _mm512_mul_ps(sum, _mm512_set1_ps(row_scale[r]));
        if constexpr (Grouped) f[r][v] = _mm512_fmadd_ps(sum, s, f[r][v]);
        else f[r][v] = _mm512_mul_ps(sum, s);
      DITPRESS_END
    DITPRESS_END
    a += chunks * Rows * kChunk;
    w += chunks * 4 * Vectors * kVector / (Nibbles ? 2 : 1);
    scale += 16 * Vectors;
    start += job.m;
    if constexpr (Scaled) row_scale += job.m;
  } while (--g);
  DITPRESS_EACH(Vectors, v)
    const __mmask16 mask = first_lanes(job.columns - 16 * v);
    const __m512 bias = _mm512_loadu_ps(job.bias + 16 * v);
    DITPRESS_EACH(Rows, r)
      __m512 y;
      if constexpr (Scaled) y = _mm512_add_ps(f[r][v], bias);
      else y = _mm512_fmadd_ps(f[r][v], _mm512_set1_ps(row_scale[r]), bias);
      if constexpr (How == Finish::kGelu) y = gelu(y);
      if constexpr (How == Finish::kGate) y = finish_gate(job.epilogue, y, row + r, 16 * v, mask);
      _mm512_mask_storeu_ps(job.y + (row + r) * job.y_stride + 16 * v, mask, y);
    DITPRESS_END
  DITPRESS_END
}

template <int MaxRows, int Vectors, bool Grouped, bool Nibbles, bool Stream, Finish How, bool Scaled>
void int8_tiles(const Int8Job& job) {
  // The codes of the next panel come nearer a little with every tile.
  const int64_t count = job.last_tile - job.first_tile;
  const int64_t lines = job.next ? (job.next_bytes + 63) / 64 : 0;
  Fetch fetch(job.weights);
  for (int64_t t = job.first_tile; t < job.last_tile; ++t) {
    const int64_t row = tile_row(job, t), rows = tile_row(job, t + 1) - row, done = t - job.first_tile;
    if constexpr (!Stream) {
      fetch.clear();
      for (int64_t at = tile_row(lines, count, done); at < tile_row(lines, count, done + 1); ++at)
        fetch.add(job.next + at * 64);
      fetch_ends<Vectors, How>(job, row, rows, fetch);
      fetch.start();
    }
    DITPRESS_EACH(MaxRows, i)
      if (rows == i + 1) int8_tile<i + 1, Vectors, Grouped, Nibbles, Stream, How, Scaled>(job, row, fetch);
    DITPRESS_END
  }
}

template <int MaxRows, int Vectors, bool Grouped, bool Nibbles, bool Stream, bool Scaled = false>
void finish_int8(const Int8Job& job) {
  switch (finish_of(job.epilogue)) {
    case Finish::kGelu: return int8_tiles<MaxRows, Vectors, Grouped, Nibbles, Stream, Finish::kGelu, Scaled>(job);
    case Finish::kGate: return int8_tiles<MaxRows, Vectors, Grouped, Nibbles, Stream, Finish::kGate, Scaled>(job);
    default: return int8_tiles<MaxRows, Vectors, Grouped, Nibbles, Stream, Finish::kStore, Scaled>(job);
  }
}

template <int MaxRows, int Vectors, bool Grouped, bool Nibbles>
void stream_int8(const Int8Job& job) {
  if (job.last_tile - job.first_tile <= 2) finish_int8<MaxRows, Vectors, Grouped, Nibbles, true>(job);
  else finish_int8<MaxRows, Vectors, Grouped, Nibbles, false>(job);
}

}  // namespace

void avx512::int8_panel(const Int8Job& job) {
  if (job.scaled) {
    if (job.nibbles) finish_int8<kGroupNibbleRows, kGroupVectors, true, true, false, true>(job);
    else finish_int8<kGroupRows, kGroupVectors, true, false, false, true>(job);
  } else if (job.groups == 1) {
    if (job.nibbles) stream_int8<kChannelRows, kChannelVectors, false, true>(job);
    else stream_int8<kChannelRows, kChannelVectors, false, false>(job);
  } else {
    if (job.nibbles) stream_int8<kGroupNibbleRows, kGroupVectors, true, true>(job);
    else stream_int8<kGroupRows, kGroupVectors, true, false>(job);
  }
}

void avx512::sum_row(const SumJob& job) {
  for (int n = 0; n < job.columns; n += 16) {
    const __mmask16 mask = first_lanes(job.columns - n);
    const __m512 small = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, job.parts[1] + n),
                                       _mm512_maskz_loadu_ps(mask, job.parts[2] + n));
    __m512 y = _mm512_add_ps(_mm512_maskz_loadu_ps(mask, job.parts[0] + n), small);
    y = _mm512_add_ps(y, _mm512_maskz_loadu_ps(mask, job.bias + n));
    if (job.epilogue.gelu) y = gelu(y);
    if (job.epilogue.gate) y = finish_gate(job.epilogue, y, job.row, n, mask);
    _mm512_mask_storeu_ps(job.y + n, mask, y);
  }
}

}  // namespace ditpress
