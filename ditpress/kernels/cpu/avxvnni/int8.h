#pragma once

#include "../core.h"

namespace ditpress {
namespace avxvnni {

constexpr int kRows = 6;  // 12 accumulators, 2 vectors of weights and one of activations

void int8_panel(const Int8Job&);

}  // namespace avxvnni
}  // namespace ditpress
