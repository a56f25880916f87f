// Loops over compile-time indices: arrays of registers are then split before the optimiser could put them on the stack.
#pragma once

#include <type_traits>
#include <utility>

#define DITPRESS_INLINE inline __attribute__((always_inline))

namespace ditpress {
namespace {

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

}  // namespace
}  // namespace ditpress
