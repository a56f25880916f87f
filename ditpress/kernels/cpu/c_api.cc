// The library as C sees it. No exception leaves it: functions return null or a non-zero status, and
// ditpress_last_error() tells the reason to the thread that called.
#include <exception>
#include <stdexcept>
#include <string>

#include "assign.h"
#include "attend.h"
#include "isa.h"
#include "search.h"
#include "weight.h"

namespace {

constexpr int32_t kAbiVersion = 5;

thread_local std::string t_error;

// The result of `function`, or `failed` with the message kept.
template <class R, class F>
R guard(R failed, F&& function) noexcept {
  try {
    return function();
  } catch (const std::bad_alloc&) {
    t_error = "out of memory";
  } catch (const std::exception& e) {
    t_error = e.what();
  } catch (...) {
    t_error = "unknown error";
  }
  return failed;
}

}  // namespace

// Changes whenever a signature below does.
DITPRESS_EXPORT int32_t ditpress_abi_version() { return kAbiVersion; }

// Message of the last call on this thread that failed; empty before the first.
DITPRESS_EXPORT const char* ditpress_last_error() { return t_error.c_str(); }

// "avx512vnni", "avxvnni", "avx2", "neon", "portable" or "reference" (DITPRESS_ISA, else the best of this CPU); null on
// error.
DITPRESS_EXPORT const char* ditpress_isa() {
  return guard<const char*>(nullptr, [] {
    const ditpress::Kernels* kernels = ditpress::default_kernels();
    return kernels ? kernels->name : "reference";
  });
}

// Take the threads of an OpenMP runtime that is already loaded: the shared object at `path`, null for the first in
// the process. 1 when found, else 0: then ditpress_weight_run works on the calling thread.
DITPRESS_EXPORT int32_t ditpress_use_openmp(const char* path) { return ditpress::use_openmp(path) ? 1 : 0; }

// Repack a weight for the named instruction set: row-major `codes` uint8 [n][...], `codebook` int8
// [tables][entries][vector_length], `table` uint8 [n] (null with one table), `scale` [n][groups] float or half;
// `activation` a number of enum Activation. Null on error. The inputs are not needed afterwards.
DITPRESS_EXPORT void* ditpress_weight_create(const uint8_t* codes, int64_t n, int64_t k, int32_t entries,
                                             int32_t vector_length, const int8_t* codebook, int32_t tables,
                                             const uint8_t* table, const void* scale, int32_t scale_is_half,
                                             int64_t groups, int32_t activation, int32_t fold_scales,
                                             const char* isa) {
  return guard<void*>(nullptr, [&]() -> void* {
    if (activation < 0 || activation > static_cast<int32_t>(ditpress::Activation::kFp8))
      throw std::invalid_argument("activation format " + std::to_string(activation) + " is unknown, expected 0 to 5");
    const ditpress::WeightSource source{
        codes, n, k, entries, vector_length, codebook, scale, scale_is_half != 0, groups,
        static_cast<ditpress::Activation>(activation), fold_scales != 0, tables, table};
    return new ditpress::Weight(source, ditpress::kernels_named(isa));
  });
}

DITPRESS_EXPORT int64_t ditpress_weight_bytes(const void* weight) {
  return static_cast<const ditpress::Weight*>(weight)->bytes();
}

DITPRESS_EXPORT void ditpress_weight_destroy(void* weight) { delete static_cast<ditpress::Weight*>(weight); }

// y [m][n] = epilogue(prologue(x) [m][k] * weight + bias [n]) on up to `threads` threads. Null pointers leave a part
// out: bias; shift and modulation [prologue_rows][k] of a layer norm with `epsilon`; gate [gate_rows][n] and residual
// [m][n]. 0 on success.
DITPRESS_EXPORT int32_t ditpress_weight_run(const void* weight, const float* x, int64_t m, const float* bias,
                                            const float* shift, const float* modulation, int64_t prologue_rows,
                                            float epsilon, int32_t gelu, const float* gate, const float* residual,
                                            int64_t gate_rows, float* y, int32_t threads) {
  return guard<int32_t>(1, [&] {
    const auto& w = *static_cast<const ditpress::Weight*>(weight);
    const int64_t columns = w.n();
    w.run({x, m, bias, {shift, w.k()}, {modulation, w.k()}, prologue_rows, epsilon, gelu != 0, {gate, columns}, residual,
           gate_rows, &y, &columns, 1},
          ditpress::openmp_pool(threads));
    return 0;
  });
}

// Attention of `heads` heads of `width` values on the named instruction set; q, y [batch][queries][heads * width], k, v
// [batch][keys][heads * width]; mask null or with four strides (batch, head, query, key). 0 on success.
DITPRESS_EXPORT int32_t ditpress_attention(const float* q, const float* k, const float* v, const float* mask,
                                           const int64_t* mask_stride, int64_t batch, int64_t heads, int64_t queries,
                                           int64_t keys, int64_t width, float scale, int32_t bf16, float* y,
                                           const char* isa, int32_t threads) {
  return guard<int32_t>(1, [&] {
    ditpress::AttentionCall call{q, k, v, mask, {}, batch, heads, queries, keys, width, scale, bf16 != 0, y};
    for (int i = 0; mask && i < 4; ++i) call.mask_stride[i] = mask_stride[i];
    ditpress::attend(call, ditpress::kernels_named(isa), ditpress::openmp_pool(threads));
    return 0;
  });
}

// The codeword of least sum_i pressure c^2 - 2 pull c (of equal ones the first) for every point, and that cost: pull and
// pressure [points][length], codebook [entries][length] to codes and cost [points]. A point whose costs are all infinite
// or no number gets code 0 and an infinite cost. 0 on success.
DITPRESS_EXPORT int32_t ditpress_nearest(const float* pull, const float* pressure, int64_t points, int64_t length,
                                         const float* codebook, int64_t entries, int64_t* codes, float* cost,
                                         const char* isa, int32_t threads) {
  return guard<int32_t>(1, [&] {
    ditpress::assign({pull, pressure, points, length, codebook, entries, codes, cost}, ditpress::kernels_named(isa),
                     ditpress::openmp_pool(threads));
    return 0;
  });
}

// The best of the scales tried for every group of weights: least sum_i importance (scale * v(weight / scale) - weight)^2,
// v the nearest value, of equal ones the first. weight [groups][group], scale [groups][tried]; importance null or
// [importance_rows][group], over and over; values null for the whole numbers from `low` to `high`, else 2 (high - low) + 1
// values, the one nearest to x at floor(2 x) - 2 low. `best` [groups] takes the index of a scale, `error` [groups] the sum.
// 0 on success.
DITPRESS_EXPORT int32_t ditpress_best_scales(const float* weight, int64_t groups, int64_t group, const float* scale,
                                             int64_t tried, const float* importance, int64_t importance_rows,
                                             int32_t low, int32_t high, const float* values, int64_t* best,
                                             float* error, const char* isa, int32_t threads) {
  return guard<int32_t>(1, [&] {
    ditpress::search_scales({weight, scale, importance, importance_rows, 0, groups, group, tried,
                             static_cast<float>(low), static_cast<float>(high), values, best, error},
                            ditpress::kernels_named(isa), ditpress::openmp_pool(threads));
    return 0;
  });
}
