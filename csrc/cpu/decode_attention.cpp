// Attention of each query for itself over its row's cached keys, with an online softmax over blocks of keys: for one
// query a row, and for few. See cfg_euler.cpp for
// what a file compiled per instruction set must not do.
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

constexpr int32_t kBlock = 64;
constexpr int32_t kPair = 2 * kLanes;
constexpr int32_t kMaxVectors = kMaxHead / kLanes;
constexpr int32_t kAhead = 8;  // keys: a head's part of each is too short for the hardware's own prefetch

// The state of one head's softmax: the largest score so far, and sum and weighted values relative to it. Vectors are in
// the order of load_pairs.
struct Running {
    F32 q[kMaxVectors];
    F32 values[kMaxVectors];
    float largest;
    float total;
};

template <class T>
INLINE void fetch(const T* from, int32_t head) {
    for (int32_t d = 0; d < head; d += 64 / static_cast<int32_t>(sizeof(T))) __builtin_prefetch(from + d);
}

template <class T>
INLINE float score(const Running& state, const T* k, int32_t head) {
    F32 even, odd, evens{}, odds{};
    for (int32_t d = 0; d < head; d += kPair) {
        load_pairs(k + d, head - d, even, odd);
        evens += state.q[d / kLanes] * even;
        odds += state.q[d / kLanes + 1] * odd;
    }
    return sum(evens + odds);
}

template <class T>
INLINE void add(Running& state, float weight, const T* v, int32_t head) {
    F32 even, odd;
    for (int32_t d = 0; d < head; d += kPair) {
        load_pairs(v + d, head - d, even, odd);
        state.values[d / kLanes] += weight * even;
        state.values[d / kLanes + 1] += weight * odd;
    }
}

// Takes in keys and values first .. last - 1, at most kBlock of them.
template <class T>
INLINE void attend(Running& state, const T* k, const T* v, int64_t stride, int32_t first, int32_t last, int32_t head,
                   float scale) {
    float scores[kBlock];
    float largest = state.largest;
    for (int32_t j = first; j < last; ++j) {
        fetch(k + (j + kAhead < last ? j + kAhead : j) * stride, head);
        const float s = scale * score(state, k + j * stride, head);
        scores[j - first] = s;
        if (!(s <= largest)) largest = s;  // NaN wins, as it does in a softmax
    }
    for (int32_t j = last - first; j < kBlock; ++j) scores[j] = -__builtin_inff();
    const bool first_block = state.largest == -__builtin_inff();
    const float keep = first_block ? 0.0f : sum(exp(splat(state.largest - largest))) / kLanes;
    for (int32_t i = 0; i < (head + kPair - 1) / kPair * 2; ++i) state.values[i] *= keep;
    F32 total{};
    for (int32_t i = 0; i < kBlock; i += kLanes) {
        const F32 weights = exp(load(scores + i) - largest);
        store(scores + i, weights);
        total += weights;
    }
    state.total = state.total * keep + sum(total);
    state.largest = largest;
    for (int32_t j = first; j < last; ++j) {
        fetch(v + (j + kAhead < last ? j + kAhead : j) * stride, head);
        add(state, scores[j - first], v + j * stride, head);
    }
}

template <class T>
INLINE void one_head(const DecodeAttentionParams& p, int32_t query, int32_t h) {
    const int32_t b = query / p.queries;
    const int64_t at = b * p.batch_stride + int64_t{h / (p.heads / p.kv_heads)} * p.head;
    const T* k = static_cast<const T*>(p.k) + at;
    const T* v = static_cast<const T*>(p.v) + at;
    const int64_t row = (int64_t{query} * p.heads + h) * p.head;
    Running state{{}, {}, -__builtin_inff(), 0.0f};
    for (int32_t d = 0; d < p.head; d += kPair) {
        load_pairs(static_cast<const T*>(p.q) + row + d, p.head - d, state.q[d / kLanes], state.q[d / kLanes + 1]);
    }
    const int32_t start = p.kv_start && p.kv_start[b] > 0 ? p.kv_start[b] : 0;
    const int32_t end = p.kv_end && p.kv_end[query] < p.keys ? p.kv_end[query] : p.keys;
    for (int32_t j = start; j < end; j += kBlock) {
        attend(state, k, v, p.key_stride, j, end - j < kBlock ? end : j + kBlock, p.head, p.scale);
    }
    const int32_t own = p.slots ? p.slots[query] : start;
    if (own < start || own >= end) attend(state, k, v, p.key_stride, own, own + 1, p.head, p.scale);
    T* o = static_cast<T*>(p.o) + row;
    const float share = 1.0f / state.total;
    for (int32_t d = 0; d < p.head; d += kPair) {
        const int32_t count = p.head - d < kPair ? p.head - d : kPair;
        store_pairs(o + d, state.values[d / kLanes] * share, state.values[d / kLanes + 1] * share, count);
    }
}

template <class T>
void heads(const DecodeAttentionParams& p) {
    const int32_t count = p.batch * p.queries * p.heads;
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int32_t i = 0; i < count; ++i) one_head<T>(p, i / p.heads, i % p.heads);
}

}  // namespace

void decode_attention(const DecodeAttentionParams& p) {
    if (p.dtype == Dtype::f32) return heads<float>(p);
    return heads<bf16>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
