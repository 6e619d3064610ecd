// RoPE on queries and keys, and the write of keys and values into their cache, in one pass over qkv. See
// flow_update.cpp for what a file compiled per instruction set must not do.
#include "cpu/rope_kv_write.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/parallel.h"

// [a, b] -> [a cos - b sin, b cos + a sin] over the halves of one head.
template <class T>
INLINE void rotate(const T* from, T* to, const float* cos, const float* sin, int32_t half) {
    for (int32_t i = 0; i < half; i += kLanes) {
        const int32_t count = half - i;
        const F32 a = load(from + i, count), b = load(from + half + i, count);
        const F32 c = load(cos + i, count), s = load(sin + i, count);
        store(to + i, a * c - b * s, count);
        store(to + half + i, b * c + a * s, count);
    }
}

template <class T>
void tokens(const RopeKvWriteParams& p) {
    const int64_t head = 2 * int64_t{p.half};
    const int64_t width = (p.heads + 2 * int64_t{p.kv_heads}) * head;
    const int64_t count = int64_t{p.batch} * p.tokens;
    parallel_for(p.threads, count, 0.3 * count * width, [&](int64_t t) {
        const T* from = static_cast<const T*>(p.qkv) + t * width;
        const float* cos = p.table + p.positions[t] * head;
        const float* sin = cos + p.half;
        T* q = static_cast<T*>(p.q) + t * p.heads * head;
        for (int32_t h = 0; h < p.heads; ++h) rotate(from + h * head, q + h * head, cos, sin, p.half);
        const int64_t at = t / p.tokens * p.cache_batch_stride + p.slots[t] * p.cache_slot_stride;
        T* k = static_cast<T*>(p.k_cache) + at;
        T* v = static_cast<T*>(p.v_cache) + at;
        const T* keys = from + p.heads * head;
        const T* values = keys + p.kv_heads * head;
        for (int32_t g = 0; g < p.kv_heads; ++g) rotate(keys + g * head, k + g * head, cos, sin, p.half);
        __builtin_memcpy(v, values, p.kv_heads * head * sizeof(T));
    });
}

}  // namespace

void rope_kv_write(const RopeKvWriteParams& p) {
    if (p.dtype == Dtype::f32) return tokens<float>(p);
    return tokens<bf16>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
