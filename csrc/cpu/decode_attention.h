#pragma once

#include "kernel.h"

namespace flashjanus {

// The most channels of a head.
inline constexpr int32_t kMaxHead = 256;

// Query i of row b: o = softmax(scale q K^T) V over the keys kv_start[b] <= j < kv_end[b, i] and j = slots[b, i].
struct DecodeAttentionParams {
    const void* q;  // [batch, queries, heads, head]
    const void* k;  // [batch, keys, kv_heads, head]
    const void* v;
    const int32_t* kv_start;  // on a CPU null, with kv_end and slots: every query sees every key
    const int32_t* kv_end;    // [batch, queries]
    const int32_t* slots;     // [batch, queries]
    void* o;                  // [batch, queries, heads, head]
    Dtype dtype;
    float scale;
    int32_t batch;
    int32_t queries;  // of a row; on a GPU 1
    int32_t keys;
    int32_t heads;
    int32_t kv_heads;
    int32_t head;
    int64_t batch_stride;  // of k and v
    int64_t key_stride;
    int32_t threads;
};

inline Refusal check(const DecodeAttentionParams& p) {
    if (p.batch < 1 || p.queries < 1 || p.keys < 1 || p.heads < 1 || p.kv_heads < 1 || p.head < 1) {
        return expected::sizes;
    }
    if (p.heads % p.kv_heads) return expected::sizes;
    if (p.head > kMaxHead) return "expected heads of at most 256 channels";
    if (!valid(p.dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    const bool rule = p.kv_start && p.kv_end && p.slots, none = !p.kv_start && !p.kv_end && !p.slots;
    return p.q && p.k && p.v && p.o && (rule || none) ? nullptr : expected::tensors;
}

}  // namespace flashjanus
