// The CPU kernels: one entry per kernel, and the choice of instruction set behind it.
#pragma once

#include "params.h"

// Every kernel of this folder: its name, and its struct of arguments.
#define FLASHJANUS_CPU_KERNELS(KERNEL)                \
    KERNEL(flow_update, FlowUpdateParams)             \
    KERNEL(gemv, GemvParams)                          \
    KERNEL(rms_norm, RmsNormParams)                   \
    KERNEL(layer_norm, LayerNormParams)               \
    KERNEL(silu_mul, SiluMulParams)                   \
    KERNEL(quantise_rows, QuantiseRowsParams)         \
    KERNEL(rope_kv_write, RopeKvWriteParams)          \
    KERNEL(decode_attention, DecodeAttentionParams)   \
    KERNEL(depthwise_norm, DepthwiseNormParams)       \
    KERNEL(gelu_grn_stats, GeluGrnStatsParams)        \
    KERNEL(grn_apply, GrnApplyParams)                 \
    KERNEL(residual_modulate, ResidualModulateParams) \
    KERNEL(step_cache, StepCacheParams)               \
    KERNEL(group_norm_silu, GroupNormSiluParams)      \
    KERNEL(sample_token, SampleTokenParams)

// Those that only a machine with AMX executes, which has AVX-512 with VNNI and bfloat16 too.
#define FLASHJANUS_AMX_KERNELS(KERNEL)      \
    KERNEL(tiled_linear, TiledLinearParams) \
    KERNEL(int4_linear, Int4LinearParams)   \
    KERNEL(tiled_attention, DecodeAttentionParams)

namespace flashjanus::cpu {

enum class Isa : int32_t { baseline = 0, avx2 = 1, avx512 = 2 };
inline constexpr int kIsaCount = 3;

const char* name(Isa isa);
bool built(Isa isa);      // compiled into this module
bool available(Isa isa);  // built, and this machine executes it
Isa best();               // the widest available one
bool amx_built();
bool amx_available();  // and the operating system lets this process use the tiles

#define FLASHJANUS_DECLARE(kernel, Params) Status kernel(const Params& params, Isa isa);
FLASHJANUS_CPU_KERNELS(FLASHJANUS_DECLARE)
FLASHJANUS_AMX_KERNELS(FLASHJANUS_DECLARE)  // the same for every isa
#undef FLASHJANUS_DECLARE

}  // namespace flashjanus::cpu
