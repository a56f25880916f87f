// AVX-512 with VNNI. vpdpbusd adds four products of unsigned bytes (weights + 128) and signed bytes (activations) to an
// int32. The 128 too much per weight is taken back before the sum starts: accumulators begin at -128 * (sum of the
// activations of the group), so neither zero points nor column sums are stored, whatever the codebook.
#include <immintrin.h>

#include <utility>

#include "generic.h"

#define DITPRESS_INLINE inline __attribute__((always_inline))

namespace ditpress {
namespace {

constexpr int kVector = 64;  // 16 columns of 4 bytes

// Register tiles, rows x vectors of 16 columns. One scale per channel: 6 x 4 int32 accumulators. Groups: int32 and
// float accumulators side by side in registers, 7 x 2 of each (6 x 2 when codes are decoded in registers, which needs
// two more).
constexpr int kChannelRows = 6, kChannelVectors = 4;
constexpr int kGroupRows = 7, kGroupNibbleRows = 6, kGroupVectors = 2;
constexpr int kFloatRows = 4, kFloatVectors = 2;

// From this many rows on, decoding a panel once to memory costs less than decoding it for every row tile.
constexpr int64_t kDecodeOnce = 256;

Layout layout(Activation activation, bool grouped) {
  const bool wide = activation == Activation::kInt8 && !grouped;
  const int vectors = wide ? kChannelVectors : activation == Activation::kInt8 ? kGroupVectors : kFloatVectors;
  return {16 * vectors, kVector, activation == Activation::kInt8 ? 128 : 0};
}

bool decode_inside(Activation activation, int64_t m) {
  return activation == Activation::kInt8 ? m < kDecodeOnce : m <= kFloatRows;
}

int tile_rows(bool grouped, bool nibbles) {
  return !grouped ? kChannelRows : nibbles ? kGroupNibbleRows : kGroupRows;
}

// Loops over compile-time indices: arrays of registers are then split before the optimiser could put them on the stack.
template <class F, int... I>
DITPRESS_INLINE void each(F&& f, std::integer_sequence<int, I...>) {
  (f(std::integral_constant<int, I>{}), ...);
}
template <int Count, class F>
DITPRESS_INLINE void each(F&& f) {
  each(f, std::make_integer_sequence<int, Count>{});
}
#define DITPRESS_EACH(count, i) each<count>([&](auto i) __attribute__((always_inline)) {
#define DITPRESS_END });

DITPRESS_INLINE __m512i decode_table(const uint8_t* table) {
  return _mm512_broadcast_i32x4(_mm_loadu_si128(reinterpret_cast<const __m128i*>(table)));
}

// Two vectors of weight bytes from one vector of codes. As an asm statement for the reason given at row_step.
DITPRESS_INLINE void decode_pair(const uint8_t* packed, __m512i table, __m512i mask, __m512i& low, __m512i& high) {
  using Codes = uint8_t[kVector];
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
    DITPRESS_EACH(Vectors / 2, j) decode_pair(w + j * kVector, table, mask, b[2 * j], b[2 * j + 1]); DITPRESS_END
  } else {
    DITPRESS_EACH(Vectors, v) b[v] = _mm512_loadu_si512(w + v * kVector); DITPRESS_END
  }
}

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

// acc += activations x weights over `chunks` chunks of 16 k.
template <int Rows, int Vectors, bool Nibbles>
DITPRESS_INLINE void multiply(const int8_t* a, const uint8_t* w, int64_t chunks, __m512i table,
                              __m512i (&acc)[Rows][Vectors]) {
  constexpr int kQuad = Vectors * kVector / (Nibbles ? 2 : 1);
  const int8_t* const end = a + chunks * Rows * kChunk;
  do {
    DITPRESS_EACH(4, quad)
      __m512i b[Vectors];
      load_weights<Vectors, Nibbles>(w + quad * kQuad, table, b);
      DITPRESS_EACH(Rows, r) row_step<Vectors>(a + r * kChunk + quad * 4, b, acc[r]); DITPRESS_END
    DITPRESS_END
    a += Rows * kChunk;
    w += 4 * kQuad;
  } while (a != end);
}

template <int Vectors>
DITPRESS_INLINE __mmask16 column_mask(int columns, int v) {
  const int left = columns - 16 * v;
  return left >= 16 ? 0xffff : left <= 0 ? 0 : static_cast<__mmask16>((1u << left) - 1);
}

template <int Rows, int Vectors, bool Grouped, bool Nibbles>
__attribute__((noinline)) void int8_tile(const Int8Job& job, int64_t row) {
  const int64_t chunks = job.group_chunks;
  const int8_t* a = job.activations + row * job.groups * chunks * kChunk;
  const uint8_t* w = job.weights;
  const int32_t* start = job.start + row;
  const __m512i table = Nibbles ? decode_table(job.table) : _mm512_setzero_si512();
  const float* scale = job.scale;
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
    multiply<Rows, Vectors, Nibbles>(a, w, chunks, table, acc);
    DITPRESS_EACH(Vectors, v)
      const __m512 s = _mm512_loadu_ps(scale + 16 * v);
      DITPRESS_EACH(Rows, r)
        const __m512 sum = _mm512_cvtepi32_ps(acc[r][v]);
        if constexpr (Grouped) f[r][v] = _mm512_fmadd_ps(sum, s, f[r][v]);
        else f[r][v] = _mm512_mul_ps(sum, s);
      DITPRESS_END
    DITPRESS_END
    a += chunks * Rows * kChunk;
    w += chunks * 4 * Vectors * kVector / (Nibbles ? 2 : 1);
    scale += 16 * Vectors;
    start += job.m;
  } while (--g);
  DITPRESS_EACH(Vectors, v)
    const __mmask16 mask = column_mask<Vectors>(job.columns, v);
    const __m512 bias = _mm512_loadu_ps(job.bias + 16 * v);
    DITPRESS_EACH(Rows, r)
      const __m512 y = _mm512_fmadd_ps(f[r][v], _mm512_set1_ps(job.row_scale[row + r]), bias);
      _mm512_mask_storeu_ps(job.y + (row + r) * job.y_stride + 16 * v, mask, y);
    DITPRESS_END
  DITPRESS_END
}

template <int MaxRows, int Vectors, bool Grouped, bool Nibbles>
void int8_tiles(const Int8Job& job) {
  for (int64_t t = job.first_tile; t < job.last_tile; ++t) {
    const int64_t row = tile_row(job.m, job.tiles, t);
    const int64_t rows = tile_row(job.m, job.tiles, t + 1) - row;
    DITPRESS_EACH(MaxRows, i)
      if (rows == i + 1) int8_tile<i + 1, Vectors, Grouped, Nibbles>(job, row);
    DITPRESS_END
  }
}

void int8_panel(const Int8Job& job) {
  if (job.groups == 1) {
    if (job.nibbles) int8_tiles<kChannelRows, kChannelVectors, false, true>(job);
    else int8_tiles<kChannelRows, kChannelVectors, false, false>(job);
  } else {
    if (job.nibbles) int8_tiles<kGroupNibbleRows, kGroupVectors, true, true>(job);
    else int8_tiles<kGroupRows, kGroupVectors, true, false>(job);
  }
}

template <int Rows, bool Nibbles>
__attribute__((noinline)) void float_tile(const FloatJob& job, int64_t row) {
  constexpr int Vectors = kFloatVectors;
  const int64_t padded_k = job.groups * job.group_chunks * kChunk;
  const float* x = job.x + row * padded_k;
  const uint8_t* w = job.weights;
  const __m512i table = Nibbles ? decode_table(job.table) : _mm512_setzero_si512();
  __m512 f[Rows][Vectors];
  DITPRESS_EACH(Rows, r) DITPRESS_EACH(Vectors, v) f[r][v] = _mm512_setzero_ps(); DITPRESS_END DITPRESS_END
  for (int64_t g = 0; g < job.groups; ++g) {
    __m512 acc[Rows][Vectors];
    DITPRESS_EACH(Rows, r) DITPRESS_EACH(Vectors, v) acc[r][v] = _mm512_setzero_ps(); DITPRESS_END DITPRESS_END
    for (int64_t quad = 0; quad < job.group_chunks * 4; ++quad, x += 4) {
      __m512i b[Vectors];
      load_weights<Vectors, Nibbles>(w, table, b);
      w += Vectors * kVector / (Nibbles ? 2 : 1);
      DITPRESS_EACH(4, i)
        DITPRESS_EACH(Vectors, v)
          // byte i of every dword, sign extended
          constexpr int kLeft = 24 - 8 * decltype(i)::value;
          const __m512 weight = _mm512_cvtepi32_ps(_mm512_srai_epi32(_mm512_slli_epi32(b[v], kLeft), 24));
          DITPRESS_EACH(Rows, r)
            acc[r][v] = _mm512_fmadd_ps(_mm512_set1_ps(x[r * padded_k + i]), weight, acc[r][v]);
          DITPRESS_END
        DITPRESS_END
      DITPRESS_END
    }
    DITPRESS_EACH(Vectors, v)
      const __m512 s = _mm512_loadu_ps(job.scale + (g * Vectors + v) * 16);
      DITPRESS_EACH(Rows, r) f[r][v] = _mm512_fmadd_ps(acc[r][v], s, f[r][v]); DITPRESS_END
    DITPRESS_END
  }
  DITPRESS_EACH(Vectors, v)
    const __mmask16 mask = column_mask<Vectors>(job.columns, v);
    const __m512 bias = _mm512_loadu_ps(job.bias + 16 * v);
    DITPRESS_EACH(Rows, r)
      _mm512_mask_storeu_ps(job.y + (row + r) * job.y_stride + 16 * v, mask, _mm512_add_ps(f[r][v], bias));
    DITPRESS_END
  DITPRESS_END
}

template <bool Nibbles>
void float_tiles(const FloatJob& job) {
  for (int64_t row = 0; row < job.m; row += kFloatRows) {
    const int64_t rows = job.m - row;
    DITPRESS_EACH(kFloatRows, i)
      if (rows == i + 1 || (i + 1 == kFloatRows && rows > kFloatRows)) float_tile<i + 1, Nibbles>(job, row);
    DITPRESS_END
  }
}

void float_panel(const FloatJob& job) { job.nibbles ? float_tiles<true>(job) : float_tiles<false>(job); }

void decode(const uint8_t* packed, uint8_t* bytes, int64_t count, const uint8_t* table) {
  const __m512i lut = decode_table(table);
  for (int64_t v = 0; v < count; v += 2 * kVector, packed += kVector, bytes += 2 * kVector) {
    __m512i b[2];
    load_weights<2, true>(packed, lut, b);
    _mm512_storeu_si512(bytes, b[0]);
    _mm512_storeu_si512(bytes + kVector, b[1]);
  }
}

void widen_half(const uint16_t* half, float* out, int64_t count) {
  int64_t i = 0;
  for (; i + 16 <= count; i += 16)
    _mm512_storeu_ps(out + i, _mm512_cvtph_ps(_mm256_loadu_si256(reinterpret_cast<const __m256i*>(half + i))));
  for (; i < count; ++i) out[i] = half_to_float(half[i]);
}

// 16 values of x from position i of a group, zero beyond its end.
DITPRESS_INLINE __m512 load_values(const float* x, int64_t i, int64_t group) {
  const int64_t left = group - i;
  return left >= 16 ? _mm512_loadu_ps(x + i)
                    : _mm512_maskz_loadu_ps(static_cast<__mmask16>((1u << left) - 1), x + i);
}

void quantize_row(const RowJob& job) {
  const int64_t k = job.groups * job.group;
  const __m512i magnitude = _mm512_set1_epi32(0x7fffffff);
  __m512i largest[2] = {_mm512_setzero_si512(), _mm512_setzero_si512()};
  for (int64_t i = 0; i < k; i += 32)
    for (int j = 0; j < 2; ++j)
      if (i + 16 * j < k) {
        const __m512i bits = _mm512_castps_si512(load_values(job.x, i + 16 * j, k));
        largest[j] = _mm512_max_epi32(largest[j], _mm512_and_si512(bits, magnitude));
      }
  float factor;
  const __m512i both = _mm512_max_epi32(largest[0], largest[1]);
  row_factors(static_cast<uint32_t>(_mm512_reduce_max_epi32(both)), job.scale, &factor);
  const __m512 factors = _mm512_set1_ps(factor);
  const __mmask16 keep = factor == 0.0f ? 0 : 0xffff;  // keeps infinity * 0 out
  int8_t* q = job.q;
  for (int64_t g = 0; g < job.groups; ++g) {
    const float* x = job.x + g * job.group;
    __m512i sum = _mm512_setzero_si512();
    for (int64_t i = 0; i < job.padded_group; i += kChunk, q += job.q_stride) {
      const __m512i value = _mm512_maskz_cvtps_epi32(keep, _mm512_mul_ps(load_values(x, i, job.group), factors));
      sum = _mm512_add_epi32(sum, value);
      _mm_storeu_si128(reinterpret_cast<__m128i*>(q), _mm512_cvtsepi32_epi8(value));
    }
    job.start[g * job.start_stride] = -128 * _mm512_reduce_add_epi32(sum);
  }
}

}  // namespace

const Kernels kAvx512Kernels = {Isa::kAvx512Vnni, "avx512vnni", layout,     decode_inside, tile_rows,
                                quantize_row,     decode,       widen_half, int8_panel,    float_panel};

}  // namespace ditpress
