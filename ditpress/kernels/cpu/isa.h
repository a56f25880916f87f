// Which instruction set to run on.
#pragma once

#include "core.h"

namespace ditpress {

// Kernels by name ("avx512vnni", "avxvnni", "avx2", "neon", "portable"). Throws std::invalid_argument for an unknown name
// and for one that this CPU or this build lacks.
const Kernels& kernels_named(const char* name);

// DITPRESS_ISA if set, else the best this CPU has; nullptr for DITPRESS_ISA=reference. Throws as above.
const Kernels* default_kernels();

}  // namespace ditpress
