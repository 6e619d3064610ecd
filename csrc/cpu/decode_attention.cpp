// Attention of the queries of a row, one or a few, over the row's cached keys: each query by itself, with an online
// softmax over blocks of keys. See flow_update.cpp for what a file compiled per instruction set must not do.
#include "cpu/decode_attention.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/parallel.h"
#include "cpu/visible.h"

constexpr int32_t kBlock = 64;
constexpr int32_t kPair = 2 * kLanes;
constexpr int32_t kMaxVectors = kMaxHead / kLanes;
constexpr int32_t kTogether = 8;  // heads

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
    for (int32_t d = 0; d < head; d += 64 / static_cast<int32_t>(sizeof(T))) __builtin_prefetch(from + d, 0, 2);
}

// kPairs: head / kPair where that is a whole number and small, so that loops unroll and sums stay in registers; else 0.
template <int32_t kPairs, class T>
INLINE float score(const Running& state, const T* k, int32_t head) {
    F32 even, odd, evens{}, odds{};
    if constexpr (kPairs > 0) {
        for (int32_t i = 0; i < kPairs; ++i) {
            load_pairs(k + i * kPair, even, odd);
            evens += state.q[2 * i] * even;
            odds += state.q[2 * i + 1] * odd;
        }
    } else {
        for (int32_t d = 0; d < head; d += kPair) {
            load_pairs(k + d, head - d, even, odd);
            evens += state.q[d / kLanes] * even;
            odds += state.q[d / kLanes + 1] * odd;
        }
    }
    return sum(evens + odds);
}

// state.values += weights[j] * v[j]
template <int32_t kPairs, class T>
INLINE void add(Running& state, const float* weights, const T* v, int64_t stride, int32_t count, int32_t head) {
    F32 even, odd;
    if constexpr (kPairs > 0) {
        F32 values[2 * kPairs];
        for (int32_t i = 0; i < 2 * kPairs; ++i) values[i] = state.values[i];
        for (int32_t j = 0; j < count; ++j) {
            for (int32_t i = 0; i < kPairs; ++i) {
                load_pairs(v + j * stride + i * kPair, even, odd);
                values[2 * i] += weights[j] * even;
                values[2 * i + 1] += weights[j] * odd;
            }
        }
        for (int32_t i = 0; i < 2 * kPairs; ++i) state.values[i] = values[i];
    } else {
        for (int32_t j = 0; j < count; ++j) {
            for (int32_t d = 0; d < head; d += kPair) {
                load_pairs(v + j * stride + d, head - d, even, odd);
                state.values[d / kLanes] += weights[j] * even;
                state.values[d / kLanes + 1] += weights[j] * odd;
            }
        }
    }
}

// Adds keys and values first .. last - 1, at most kBlock of them, and fetches the next block up to `end`: a head's part
// of each key is too short for the hardware's own prefetch.
template <int32_t kPairs, class T>
INLINE void attend(Running& state, const T* k, const T* v, int64_t stride, int32_t first, int32_t last, int32_t end,
                   int32_t head, float scale) {
    float scores[kBlock];
    float largest = state.largest;
    for (int32_t j = first; j < last; ++j) {
        if (j + kBlock < end) {
            fetch(k + (j + kBlock) * stride, head);
            fetch(v + (j + kBlock) * stride, head);
        }
        const float s = scale * score<kPairs>(state, k + j * stride, head);
        scores[j - first] = s;
        if (!(s <= largest)) largest = s;  // NaN wins, as in a softmax
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
    add<kPairs>(state, scores, v + first * stride, stride, last - first, head);
}

// Heads first .. last - 1 of a query, one block of keys after another: the heads' parts of a key are contiguous.
template <int32_t kPairs, class T>
INLINE void some_heads(const DecodeAttentionParams& p, int32_t query, int32_t first, int32_t last) {
    const int32_t b = query / p.queries, group = p.heads / p.kv_heads;
    Running states[kTogether];
    for (int32_t h = first; h < last; ++h) {
        Running& state = states[h - first];
        state = {{}, {}, -__builtin_inff(), 0.0f};
        const T* q = static_cast<const T*>(p.q) + (int64_t{query} * p.heads + h) * p.head;
        for (int32_t d = 0; d < p.head; d += kPair) {
            load_pairs(q + d, p.head - d, state.q[d / kLanes], state.q[d / kLanes + 1]);
        }
    }
    const auto take_in = [&](int32_t from, int32_t to, int32_t end) {
        for (int32_t h = first; h < last; ++h) {
            const int64_t at = b * p.batch_stride + int64_t{h / group} * p.head;
            attend<kPairs>(states[h - first], static_cast<const T*>(p.k) + at, static_cast<const T*>(p.v) + at,
                           p.key_stride, from, to, end, p.head, p.scale);
        }
    };
    const Visible row(p, b);
    const int32_t end = row.stop(query % p.queries), own = row.own(query % p.queries);
    for (int32_t j = row.start; j < end; j += kBlock) take_in(j, end - j < kBlock ? end : j + kBlock, end);
    if (own < row.start || own >= end) take_in(own, own + 1, own + 1);
    for (int32_t h = first; h < last; ++h) {
        const Running& state = states[h - first];
        T* o = static_cast<T*>(p.o) + (int64_t{query} * p.heads + h) * p.head;
        const float share = 1.0f / state.total;
        for (int32_t d = 0; d < p.head; d += kPair) {
            const int32_t count = p.head - d < kPair ? p.head - d : kPair;
            store_pairs(o + d, state.values[d / kLanes] * share, state.values[d / kLanes + 1] * share, count);
        }
    }
}

template <int32_t kPairs, class T>
void heads(const DecodeAttentionParams& p) {
    const int32_t queries = p.batch * p.queries;
    const int32_t wanted = (p.threads + queries - 1) / queries;  // parts of a query's heads that keep all threads busy
    const int32_t fewest = (p.heads + kTogether - 1) / kTogether;
    const int32_t parts = wanted < fewest ? fewest : wanted < p.heads ? wanted : p.heads;
    const double work = 0.5 * queries * p.keys * p.heads * p.head;
    parallel_for(p.threads, int64_t{queries} * parts, work, [&](int64_t i) {
        const auto query = static_cast<int32_t>(i / parts), part = static_cast<int32_t>(i % parts);
        some_heads<kPairs, T>(p, query, p.heads * part / parts, p.heads * (part + 1) / parts);
    });
}

template <class T>
void any_head(const DecodeAttentionParams& p) {
    if (p.head == kPair) return heads<1, T>(p);
    if (p.head == 2 * kPair) return heads<2, T>(p);
    if (p.head == 4 * kPair) return heads<4, T>(p);
    heads<0, T>(p);
}

}  // namespace

void decode_attention(const DecodeAttentionParams& p) {
    if (p.dtype == Dtype::f32) return any_head<float>(p);
    any_head<bf16>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
