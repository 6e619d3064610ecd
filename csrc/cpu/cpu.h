// The CPU kernels: one entry per kernel, and the choice of instruction set behind it.
#pragma once

#include "params.h"

namespace flashjanus::cpu {

enum class Isa : int32_t { baseline = 0, avx2 = 1, avx512 = 2 };
inline constexpr int kIsaCount = 3;

const char* name(Isa isa);
bool built(Isa isa);      // compiled into this module
bool available(Isa isa);  // built, and this machine executes it
Isa best();               // the widest available one

Status cfg_euler(const CfgEulerParams& params, Isa isa);

}  // namespace flashjanus::cpu
