// The CPU kernels: one entry per kernel, which chooses the instruction set.
#pragma once

#include "kernels.h"

namespace flashjanus::cpu {

enum class Isa : int32_t { baseline = 0, avx2 = 1, avx512 = 2 };
inline constexpr int kIsaCount = 3;

const char* name(Isa isa);
bool built(Isa isa);      // compiled into this module
bool available(Isa isa);  // built, and executable on this machine
Isa best();               // the widest available one
bool amx_built();
bool amx_available();  // also whether the operating system lets this process use the tiles

#define FLASHJANUS_DECLARE(kernel, Params) Refusal kernel(const Params& params, Isa isa);
FLASHJANUS_CPU_KERNELS(FLASHJANUS_DECLARE)
FLASHJANUS_AMX_KERNELS(FLASHJANUS_DECLARE)  // the same for every isa
#undef FLASHJANUS_DECLARE

}  // namespace flashjanus::cpu
