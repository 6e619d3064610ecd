// The checks of each kernel's arguments, and what a status means. Host only.
#pragma once

#include "params.h"

namespace flashjanus {

inline const char* message(Status status) {
    switch (status) {
        case Status::ok: return "ok";
        case Status::bad_rows: return "expected rows and evaluations >= 1 and 0 <= unconditional <= rows";
        case Status::bad_grid: return "expected height, width, channels and patch >= 1";
        case Status::too_large: return "expected fewer than 2^31 elements in a row of z";
        case Status::patch_too_large: return "expected channels * patch * patch <= 4096";
        case Status::bad_dtype: return "expected v_dtype 0 (float32) or 1 (bfloat16)";
        case Status::misaligned_v:
            return "expected v and kept aligned to 4 elements (16 bytes in float32, 8 in bfloat16)";
        case Status::misaligned_z: return "expected z and history aligned to 8 bytes";
        case Status::misaligned_rows: return "expected schedule, step and steps aligned to 4 bytes";
        case Status::isa_unavailable: return "expected an instruction set that this build and this machine have";
        case Status::launch_failed: return "the CUDA runtime refused the launch";
        case Status::bad_sizes: return "expected every size >= 1, and heads a multiple of kv_heads";
        case Status::bad_threads: return "expected threads >= 1";
        case Status::null_tensor: return "expected non-null pointers to all tensors that are not optional";
        case Status::too_many_rows: return "expected at most 4 rows";
        case Status::head_too_large: return "expected heads of at most 256 channels";
        case Status::too_many_channels: return "expected at most 2048 channels";
        case Status::bad_groups: return "expected at most 128 groups, and channels a multiple of them";
        case Status::bad_images: return "expected images <= batch <= 2 * images";
        case Status::bad_x_dtype: return "expected x_dtype as dtype, or 0 (float32) with norm";
        case Status::many_queries: return "expected one query a row";
        case Status::gated_bias: return "expected no bias where gated";
        case Status::row_too_long: return "expected at most 8192 channels where scale is given";
        case Status::bad_activation: return "expected act 0 (none), 1 (gated SiLU) or 2 (GELU)";
        case Status::ragged_tiles: return "expected out a multiple of 16, columns of 32 (of 64 where scale is given)";
        case Status::ragged_groups: return "expected out a multiple of 16, columns of 32";
        case Status::bf16_only: return "expected dtype 1 (bfloat16)";
        case Status::ragged_head: return "expected heads of a multiple of 32 channels";
        case Status::out_of_memory: return "expected memory for the operands in tiles";
        case Status::too_many_blocks: return "expected sizes that make fewer than 2^31 blocks";
    }
    return "unknown status";
}

inline bool aligned(const void* pointer, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

inline bool valid(Dtype dtype) {
    return dtype == Dtype::f32 || dtype == Dtype::bf16;
}

inline Status check(const GemvParams& p) {
    if (p.rows < 1 || p.columns < 1 || p.out < 1) return Status::bad_sizes;
    if (p.norm && p.columns > kMaxNormChannels) return Status::too_many_channels;
    if (!valid(p.dtype) || !valid(p.x_dtype) || !valid(p.residual_dtype) || !valid(p.y_dtype)) return Status::bad_dtype;
    if (p.x_dtype != p.dtype && !(p.norm && p.x_dtype == Dtype::f32)) return Status::bad_x_dtype;
    if (p.gated && p.bias) return Status::gated_bias;
    if (p.threads < 1) return Status::bad_threads;
    return p.x && p.w && p.y ? Status::ok : Status::null_tensor;
}

inline Status check(const TiledLinearParams& p) {
    if (p.rows < 1 || p.columns < 1 || p.out < 1) return Status::bad_sizes;
    if (p.out % 16 || p.columns % (p.scale ? 64 : 32)) return Status::ragged_tiles;
    if (p.scale && p.columns > kMaxQuantisedChannels) return Status::row_too_long;
    if (!valid(p.x_dtype) || !valid(p.bias_dtype) || !valid(p.residual_dtype) || !valid(p.y_dtype)) {
        return Status::bad_dtype;
    }
    if (p.act < Activation::none || p.act > Activation::gelu) return Status::bad_activation;
    if (p.threads < 1) return Status::bad_threads;
    return p.x && p.w && p.y ? Status::ok : Status::null_tensor;
}

inline Status check(const Int4LinearParams& p) {
    if (p.rows < 1 || p.columns < 1 || p.out < 1) return Status::bad_sizes;
    if (p.rows > kMaxGemvRows) return Status::too_many_rows;
    if (p.out % 16 || p.columns % kInt4Group) return Status::ragged_groups;
    if (p.columns > kMaxQuantisedChannels) return Status::row_too_long;
    if (!valid(p.x_dtype) || !valid(p.residual_dtype) || !valid(p.y_dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    return p.x && p.w && p.scale && p.y ? Status::ok : Status::null_tensor;
}

inline Status check(const RmsNormParams& p) {
    if (p.rows < 1 || p.channels < 1) return Status::bad_sizes;
    if (p.scale && p.channels > kMaxQuantisedChannels) return Status::row_too_long;
    if (!valid(p.x_dtype) || !valid(p.delta_dtype) || !valid(p.y_dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    return p.x && p.weight && p.y && !p.delta == !p.total ? Status::ok : Status::null_tensor;
}

inline Status check(const LayerNormParams& p) {
    if (p.rows < 1 || p.channels < 1) return Status::bad_sizes;
    if (!valid(p.x_dtype) || !valid(p.delta_dtype) || !valid(p.y_dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    return p.x && p.weight && p.bias && p.y && !p.delta == !p.total ? Status::ok : Status::null_tensor;
}

inline Status check(const SiluMulParams& p) {
    if (p.rows < 1 || p.channels < 1) return Status::bad_sizes;
    if (p.scale && p.channels > kMaxQuantisedChannels) return Status::row_too_long;
    if (!valid(p.dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    return p.x && p.y ? Status::ok : Status::null_tensor;
}

inline Status check(const QuantiseRowsParams& p) {
    if (p.rows < 1 || p.channels < 1) return Status::bad_sizes;
    if (p.channels > kMaxQuantisedChannels) return Status::row_too_long;
    if (!valid(p.dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    return p.x && p.q && p.scale ? Status::ok : Status::null_tensor;
}

inline Status check(const RopeKvWriteParams& p) {
    if (p.batch < 1 || p.tokens < 1 || p.heads < 1 || p.kv_heads < 1 || p.half < 1) return Status::bad_sizes;
    if (!valid(p.dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    const bool all = p.qkv && p.table && p.positions && p.slots && p.k_cache && p.v_cache && p.q;
    return all ? Status::ok : Status::null_tensor;
}

inline Status check(const DecodeAttentionParams& p) {
    if (p.batch < 1 || p.queries < 1 || p.keys < 1 || p.heads < 1 || p.kv_heads < 1 || p.head < 1) {
        return Status::bad_sizes;
    }
    if (p.heads % p.kv_heads) return Status::bad_sizes;
    if (p.head > kMaxHead) return Status::head_too_large;
    if (!valid(p.dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    const bool rule = p.kv_start && p.kv_end && p.slots, none = !p.kv_start && !p.kv_end && !p.slots;
    return p.q && p.k && p.v && p.o && (rule || none) ? Status::ok : Status::null_tensor;
}

inline Status check(const DepthwiseNormParams& p) {
    if (p.batch < 1 || p.height < 1 || p.width < 1 || p.channels < 1) return Status::bad_sizes;
    if (p.channels > kMaxNormChannels) return Status::too_many_channels;
    if (!valid(p.x_dtype) || !valid(p.weight_dtype) || !valid(p.y_dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    return p.x && p.weight && p.norm && p.y ? Status::ok : Status::null_tensor;
}

inline Status check(const SampleTokenParams& p) {
    if (p.rows < 1 || p.vocab < 1 || p.steps < 1) return Status::bad_sizes;
    if (!valid(p.dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    const bool settings = p.temperature && p.top_k && p.top_p && p.penalty && p.uniforms;
    return settings && p.logits && p.seen && p.token && p.step ? Status::ok : Status::null_tensor;
}

inline Status check(const GeluGrnStatsParams& p) {
    if (p.batch < 1 || p.positions < 1 || p.channels < 1) return Status::bad_sizes;
    if (!valid(p.dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    return p.x && p.y && p.sumsq ? Status::ok : Status::null_tensor;
}

inline Status check(const GrnApplyParams& p) {
    if (p.batch < 1 || p.positions < 1 || p.channels < 1) return Status::bad_sizes;
    if (!valid(p.dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    return p.y && p.sumsq && p.weight && p.bias && p.o ? Status::ok : Status::null_tensor;
}

inline Status check(const ResidualModulateParams& p) {
    if (p.batch < 1 || p.positions < 1 || p.channels < 1 || p.steps < 1) return Status::bad_sizes;
    if (p.images < 1 || p.images > p.batch || p.batch - p.images > p.images) return Status::bad_images;
    if (!valid(p.y_dtype) || !valid(p.x_dtype) || !valid(p.o_dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    return p.y && p.x && p.table && p.step && p.o ? Status::ok : Status::null_tensor;
}

inline Status check(const StepCacheParams& p) {
    if (p.batch < 1 || p.positions < 1 || p.channels < 1 || p.evaluations < 1) return Status::bad_sizes;
    if (p.images < 1 || p.images > p.batch || p.batch - p.images > p.images) return Status::bad_images;
    if (!valid(p.x_dtype) || !valid(p.slot_dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    return p.x && p.slot_0 && p.slot_1 && p.lines && p.step && p.y ? Status::ok : Status::null_tensor;
}

inline Status check(const GroupNormSiluParams& p) {
    if (p.batch < 1 || p.positions < 1 || p.channels < 1 || p.groups < 1) return Status::bad_sizes;
    if (p.channels > kMaxNormChannels) return Status::too_many_channels;
    if (p.groups > kMaxNormGroups || p.channels % p.groups) return Status::bad_groups;
    if (!valid(p.dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    return p.x && p.weight && p.bias && p.y ? Status::ok : Status::null_tensor;
}

inline Status check(const FlowUpdateParams& p) {
    if (p.rows < 1 || p.evaluations < 1 || p.unconditional < 0 || p.unconditional > p.rows) return Status::bad_rows;
    if (p.height < 1 || p.width < 1 || p.channels < 1 || p.patch < 1) return Status::bad_grid;
    int64_t elements = 1;
    const int64_t sizes[] = {p.height, p.width, p.channels, p.patch, p.patch};
    for (const int64_t size : sizes) {
        elements *= size;
        if (elements > INT32_MAX) return Status::too_large;
    }
    if (p.channels * p.patch * p.patch > kMaxPatchValues) return Status::patch_too_large;
    if (!valid(p.v_dtype)) return Status::bad_dtype;
    if (p.threads < 1) return Status::bad_threads;
    if (!p.v || !p.z || !p.history || !p.kept || !p.schedule || !p.step || !p.steps) return Status::null_tensor;
    const uintptr_t four = p.v_dtype == Dtype::f32 ? 16 : 8;
    if (!aligned(p.v, four) || !aligned(p.kept, four)) return Status::misaligned_v;
    if (!aligned(p.z, 8) || !aligned(p.history, 8)) return Status::misaligned_z;
    if (!aligned(p.schedule, 4) || !aligned(p.step, 4) || !aligned(p.steps, 4)) return Status::misaligned_rows;
    return Status::ok;
}

}  // namespace flashjanus
