#include "cpu/decode_attention.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace flashjanus::cuda {
namespace {

constexpr int kWarps = 8;
constexpr int kThreads = kWarps * kWarp;
constexpr int kUnroll = 4;      // keys that a lane loads at once
constexpr int kMaxCluster = 8;  // the largest size that every chip with clusters supports
constexpr int kExtra = 2;       // after a part's values come its largest score and its total
static_assert(kMaxHead <= kThreads, "a thread combines one channel");

// Keys first, first + 1, ... end - 1 and, if it is not among them, the query's own.
struct Visible {
    int first;
    int listed;
    int own;
    int count;

    __device__ Visible(const DecodeAttentionParams& p, int b) : first(max(p.kv_start[b], 0)), own(p.slots[b]) {
        const int end = min(p.kv_end[b], p.keys);
        listed = max(end - first, 0);
        count = listed + (own < first || own >= end);
    }

    __device__ int key(int i) const {
        return i < listed ? first + i : own;
    }
};

// The softmax over some of the keys: values and total are relative to the largest score.
template <int kSize>
struct Part {
    float values[kSize] = {};
    float largest = -INFINITY;
    float total = 0.0f;

    // Makes `larger` the new reference point.
    __device__ void rescale(float larger) {
        const float keep = largest == -INFINITY ? 0.0f : expf(largest - larger);
#pragma unroll
        for (float& value : values) value *= keep;
        total *= keep;
        largest = larger;
    }

    // Merges the part of the lane that is `lanes` away; that lane merges this one.
    __device__ void merge(int lanes) {
        rescale(fmaxf(largest, __shfl_xor_sync(kAllLanes, largest, lanes)));
        total += __shfl_xor_sync(kAllLanes, total, lanes);
#pragma unroll
        for (float& value : values) value += __shfl_xor_sync(kAllLanes, value, lanes);
    }
};

template <class T, int kPacks, bool kAligned>
__device__ inline void load_packs(Pack<T> (&packs)[kPacks], const T* from, int channel, int stride, int head) {
#pragma unroll
    for (int i = 0; i < kPacks; ++i) {
        const int at = channel + i * stride;
        packs[i] = load_pack<kAligned>(from + at, head - at);
    }
}

// Shared memory: the part of each warp, and after them the block's.
__device__ inline float* part_of(int i, int head) {
    return reinterpret_cast<float*>(dynamic_shared) + i * (head + kExtra);
}

// Channel d of several parts' values, relative to the largest of their scores. `at(i)` is part i.
template <class At>
__device__ inline float combined(int parts, int head, int d, const At& at, float& largest, float& total) {
    float value = 0.0f;
    largest = -INFINITY;
    total = 0.0f;
    for (int i = 0; i < parts; ++i) largest = fmaxf(largest, at(i)[head]);
    for (int i = 0; i < parts; ++i) {
        const float* part = at(i);
        const float keep = part[head] == -INFINITY ? 0.0f : expf(part[head] - largest);
        value += keep * part[d];
        total += keep * part[head + 1];
    }
    return value;
}

// A cluster of blocks takes one head of one row, so that a single row keeps the chip's memory busy too. kLanes lanes
// share a key, each with kPacks packs of it; a warp has 32 / kLanes keys at once, kUnroll deep. Query heads of a group
// read the same keys: the second one finds them in the cache.
template <class T, int kLanes, int kPacks, bool kAligned>
__global__ void __launch_bounds__(kThreads) decode_attention_kernel(const __grid_constant__ DecodeAttentionParams p) {
    constexpr int kKeys = kWarp / kLanes;
    constexpr int kSize = Pack<T>::kSize;
    constexpr int kStride = kLanes * kSize;  // channels from one pack of a lane to its next
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    const int rank = static_cast<int>(cluster_rank()), blocks = static_cast<int>(cluster_size());
    const int row = static_cast<int>(blockIdx.x) / blocks;
    const int b = row / p.heads, h = row % p.heads;
    const int channel = lane % kLanes * kSize;
    start_next();
    wait_for_inputs();

    const int64_t at = b * p.batch_stride + int64_t{h / (p.heads / p.kv_heads)} * p.head;
    const T* k = static_cast<const T*>(p.k) + at;
    const T* v = static_cast<const T*>(p.v) + at;
    const Visible visible(p, b);
    Pack<T> q[kPacks];
    load_packs<T, kPacks, kAligned>(q, static_cast<const T*>(p.q) + int64_t{row} * p.head, channel, kStride, p.head);

    Part<kPacks * kSize> part;
    const int stride = blocks * kWarps * kKeys;
    // the same number of rounds for every lane of a warp, because they shuffle
    for (int base = (rank * kWarps + warp) * kKeys; base < visible.count; base += kUnroll * stride) {
        Pack<T> keys[kUnroll][kPacks], values[kUnroll][kPacks];
        bool valid[kUnroll];
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const int i = base + u * stride + lane / kLanes;
            valid[u] = i < visible.count;
            const int64_t from = valid[u] ? visible.key(i) * p.key_stride : 0;
            const int head = valid[u] ? p.head : 0;
            load_packs<T, kPacks, kAligned>(keys[u], k + from, channel, kStride, head);
            load_packs<T, kPacks, kAligned>(values[u], v + from, channel, kStride, head);
        }
        float scores[kUnroll];
        float largest = part.largest;
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            float score = 0.0f;
#pragma unroll
            for (int c = 0; c < kPacks * kSize; ++c) score += q[c / kSize][c % kSize] * keys[u][c / kSize][c % kSize];
            score = p.scale * sum_lanes<kLanes / 2>(score);
            scores[u] = valid[u] ? score : -INFINITY;
            largest = fmaxf(largest, scores[u]);
        }
        part.rescale(largest);
#pragma unroll
        for (int u = 0; u < kUnroll; ++u) {
            const float weight = valid[u] ? expf(scores[u] - largest) : 0.0f;
            part.total += weight;
#pragma unroll
            for (int c = 0; c < kPacks * kSize; ++c) part.values[c] += weight * values[u][c / kSize][c % kSize];
        }
    }
#pragma unroll
    for (int lanes = kLanes; lanes < kWarp; lanes *= 2) part.merge(lanes);

    float* of_warp = part_of(warp, p.head);
    if (lane < kLanes) {
#pragma unroll
        for (int c = 0; c < kPacks * kSize; ++c) {
            const int d = channel + c / kSize * kStride + c % kSize;
            if (d < p.head) of_warp[d] = part.values[c];
        }
        if (lane == 0) of_warp[p.head] = part.largest;
        if (lane == 0) of_warp[p.head + 1] = part.total;
    }
    __syncthreads();

    const int d = threadIdx.x;
    float* of_block = part_of(kWarps, p.head);
    if (d < p.head) {
        float largest, total;
        of_block[d] = combined(kWarps, p.head, d, [&](int i) { return part_of(i, p.head); }, largest, total);
        if (d == 0) of_block[p.head] = largest;
        if (d == 0) of_block[p.head + 1] = total;
    }
    cluster_sync();
    if (rank == 0 && d < p.head) {
        float largest, total;
        const float value = combined(blocks, p.head, d, [&](int i) { return in_block(i, of_block); }, largest, total);
        store(static_cast<T*>(p.o) + int64_t{row} * p.head + d, value / total);
    }
    cluster_sync();  // no block's memory may be released before it is read
}

template <class T, int kLanes, int kPacks, bool kAligned>
Refusal launch_rows(const DecodeAttentionParams& p, void* stream) {
    const auto kernel = decode_attention_kernel<T, kLanes, kPacks, kAligned>;
    constexpr int kPerBlock = kWarps * (kWarp / kLanes) * kUnroll;
    unsigned cluster = 1;
    while (architecture(kernel) >= 90 && cluster < kMaxCluster && int64_t{cluster} * kPerBlock < p.keys) cluster *= 2;
    const unsigned shared = (kWarps + 1) * (p.head + kExtra) * sizeof(float);
    return launch(kernel, Shape{int64_t{p.batch} * p.heads * cluster, kThreads, shared, cluster, true}, p, stream);
}

template <class T>
Refusal any_head(const DecodeAttentionParams& p, void* stream) {
    constexpr int kSize = Pack<T>::kSize;
    bool whole = p.head % kSize == 0 && p.batch_stride % kSize == 0 && p.key_stride % kSize == 0;
    whole = whole && aligned(p.q, 16) && aligned(p.k, 16) && aligned(p.v, 16);
    if (!whole) return launch_rows<T, 32, 2, false>(p, stream);
    const int packs = p.head / kSize;
    if (packs <= 8) return launch_rows<T, 8, 1, true>(p, stream);
    if (packs <= 16) return launch_rows<T, 16, 1, true>(p, stream);
    if (packs <= 32) return launch_rows<T, 32, 1, true>(p, stream);
    return launch_rows<T, 32, 2, true>(p, stream);
}

}  // namespace

Refusal decode_attention(const DecodeAttentionParams& params, void* stream) {
    if (const Refusal refusal = check(params)) return refusal;
    if (params.queries != 1) return "expected one query a row";
    if (!params.kv_start) return expected::tensors;  // only CPU kernels work without the rule
    if (params.dtype == Dtype::f32) return any_head<float>(params, stream);
    return any_head<bf16>(params, stream);
}

}  // namespace flashjanus::cuda
