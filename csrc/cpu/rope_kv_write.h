#pragma once

#include "kernel.h"

namespace flashjanus {

// q = rotate(q), k_cache[b, slot] = rotate(k), v_cache[b, slot] = v, of qkv = [q | k | v] by heads; half-rotation
// layout.
struct RopeKvWriteParams {
    const void* qkv;           // [batch, tokens, heads + 2 * kv_heads, 2 * half]
    const float* table;        // [positions, 2, half]: cosines, sines
    const int32_t* positions;  // [batch, tokens]
    const int32_t* slots;      // [batch, tokens]
    void* k_cache;             // [batch, slots, kv_heads, 2 * half]
    void* v_cache;
    void* q;  // [batch, tokens, heads, 2 * half]
    Dtype dtype;
    int32_t batch;
    int32_t tokens;
    int32_t heads;
    int32_t kv_heads;
    int32_t half;
    int64_t cache_batch_stride;
    int64_t cache_slot_stride;
    int32_t threads;
};

inline Refusal check(const RopeKvWriteParams& p) {
    if (p.batch < 1 || p.tokens < 1 || p.heads < 1 || p.kv_heads < 1 || p.half < 1) return expected::sizes;
    if (!valid(p.dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    const bool all = p.qkv && p.table && p.positions && p.slots && p.k_cache && p.v_cache && p.q;
    return all ? nullptr : expected::tensors;
}

}  // namespace flashjanus
