#include <cuda_pipeline.h>

#include "cpu/depthwise_norm.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace flashjanus::cuda {
namespace {

constexpr int kTaps = 7;
constexpr int kPadding = 3;
constexpr int kSlice = 96;  // channels that a block convolves at once, one thread each
constexpr int kStrips = 2;  // of a tile, one below the other
constexpr int kThreads = kSlice * kStrips;
constexpr int kWarps = kThreads / kWarp;
constexpr int kMaxCluster = 8;  // the largest size that every chip with clusters supports
static_assert(kSlice % kWarp == 0, "a warp belongs to one strip");

// Positions that a block computes: kStrips of kTall x kWide, the outputs of one channel that a thread holds at once.
template <int kTall_, int kWide_>
struct Tile {
    static constexpr int kTall = kTall_, kWide = kWide_;
    static constexpr int kHeight = kStrips * kTall;
    static constexpr int kPositions = kHeight * kWide;
    static constexpr int kHaloWide = kWide + kTaps - 1;
    static constexpr int kHalo = (kHeight + kTaps - 1) * kHaloWide;
};
using Large = Tile<3, 6>;
using Small = Tile<1, 4>;

// A block's shared memory: a slice of x around the tile, then all of the block's outputs, then their sums of squares.
template <class T, class X>
struct Shared {
    X* halo;         // [T::kHalo, kSlice]
    float* values;   // [slices of the block, T::kPositions, kSlice]
    float* squares;  // [T::kPositions]

    __device__ explicit Shared(int slices)
        : halo(reinterpret_cast<X*>(dynamic_shared)),
          values(reinterpret_cast<float*>(halo + T::kHalo * kSlice)),
          squares(values + slices * T::kPositions * kSlice) {
    }
    static unsigned bytes(int slices) {
        return T::kHalo * kSlice * sizeof(X) + (slices * kSlice + 1) * T::kPositions * sizeof(float);
    }
};

// Starts copying channels c .. c + kSlice - 1 around the tile at (top, left); zeros outside of x.
template <class T, class X>
__device__ inline void fetch_halo(const DepthwiseNormParams& p, X* halo, const X* x, int top, int left, int c,
                                  bool whole) {
    constexpr int kSize = Pack<X>::kSize;
    constexpr int kPacks = kSlice / kSize;
    for (int i = threadIdx.x; i < T::kHalo * kPacks; i += kThreads) {
        const int place = i / kPacks, channel = c + i % kPacks * kSize;
        const int row = top - kPadding + place / T::kHaloWide, column = left - kPadding + place % T::kHaloWide;
        const bool inside = row >= 0 && row < p.height && column >= 0 && column < p.width && channel < p.channels;
        const X* from = x + (int64_t{row} * p.width + column) * p.channels + channel;
        uint4* to = reinterpret_cast<uint4*>(halo) + i;
        if (whole && inside) {
            __pipeline_memcpy_async(to, from, sizeof(uint4));
        } else {
            *to = load_pack<false>(from, inside ? p.channels - channel : 0).bits;
        }
    }
    __pipeline_commit();
}

// A thread's strip of its channel, from the halo.
template <class T, class X>
__device__ inline void convolve(const X* halo, const float (&weight)[kTaps][kTaps], float bias,
                                float (&sums)[T::kTall][T::kWide]) {
#pragma unroll
    for (int t = 0; t < T::kTall; ++t) {
#pragma unroll
        for (int o = 0; o < T::kWide; ++o) sums[t][o] = bias;
    }
#pragma unroll
    for (int r = 0; r < T::kTall + kTaps - 1; ++r) {
        float row[T::kHaloWide];
#pragma unroll
        for (int i = 0; i < T::kHaloWide; ++i) row[i] = widen(halo[(r * T::kHaloWide + i) * kSlice]);
#pragma unroll
        for (int t = 0; t < T::kTall; ++t) {
            if (r - t < 0 || r - t >= kTaps) continue;
#pragma unroll
            for (int tap = 0; tap < kTaps; ++tap) {
#pragma unroll
                for (int o = 0; o < T::kWide; ++o) sums[t][o] += weight[r - t][tap] * row[o + tap];
            }
        }
    }
}

// y[c] = value * scale * norm[c] for the block's channels of one position, by one warp.
template <class T, class Y>
__device__ inline void write(const DepthwiseNormParams& p, const float* values, float scale, int slices, Y* y) {
    for (int s = 0; s < slices; ++s) {
        const int c = (s * static_cast<int>(cluster_size()) + static_cast<int>(cluster_rank())) * kSlice;
        for (int i = threadIdx.x % kWarp; i < kSlice && c + i < p.channels; i += kWarp) {
            store(y + c + i, values[s * T::kPositions * kSlice + i] * scale * p.norm[c + i]);
        }
    }
}

// A cluster of blocks takes a tile. Each block convolves its share of the slices of channels and keeps them, the blocks
// exchange sums of squares, and each normalizes what it kept. The weights are constants, so their loads start before x
// is ready.
template <class T, class X, class W>
__global__ void __launch_bounds__(kThreads, 2) depthwise_norm_kernel(const __grid_constant__ DepthwiseNormParams p) {
    const int rank = static_cast<int>(cluster_rank()), blocks = static_cast<int>(cluster_size());
    const int across = (p.width + T::kWide - 1) / T::kWide, down = (p.height + T::kHeight - 1) / T::kHeight;
    const int tile = static_cast<int>(blockIdx.x) / blocks;
    const int left = tile % across * T::kWide, top = tile / across % down * T::kHeight, b = tile / across / down;
    const int all_slices = (p.channels + kSlice - 1) / kSlice;
    const int slices = (all_slices + blocks - 1) / blocks;
    const int strip = threadIdx.x / kSlice, channel = threadIdx.x % kSlice;
    const int64_t image = int64_t{b} * p.height * p.width * p.channels;
    const X* x = static_cast<const X*>(p.x) + image;
    const bool whole = p.channels % Pack<X>::kSize == 0 && reinterpret_cast<uintptr_t>(p.x) % 16 == 0;
    const Shared<T, X> shared(slices);
    start_next();

    for (int s = 0; s < slices; ++s) {
        const int first = (s * blocks + rank) * kSlice, c = first + channel;
        float weight[kTaps][kTaps], bias = 0.0f;
#pragma unroll
        for (int i = 0; i < kTaps * kTaps; ++i) {
            weight[i / kTaps][i % kTaps] =
                c < p.channels ? widen(static_cast<const W*>(p.weight)[i * p.channels + c]) : 0.0f;
        }
        if (p.bias && c < p.channels) bias = widen(static_cast<const W*>(p.bias)[c]);
        if (s == 0) wait_for_inputs();
        fetch_halo<T>(p, shared.halo, x, top, left, first, whole);
        __pipeline_wait_prior(0);
        __syncthreads();
        float sums[T::kTall][T::kWide];
        convolve<T>(shared.halo + strip * T::kTall * T::kHaloWide * kSlice + channel, weight, bias, sums);
#pragma unroll
        for (int i = 0; i < T::kTall * T::kWide; ++i) {
            const int position = strip * T::kTall * T::kWide + i;
            shared.values[(s * T::kPositions + position) * kSlice + channel] = sums[i / T::kWide][i % T::kWide];
        }
        __syncthreads();  // the next slice overwrites the halo
    }

    const int warp = threadIdx.x / kWarp, lane = threadIdx.x % kWarp;
    for (int position = warp; position < T::kPositions; position += kWarps) {
        float squares = 0.0f;
        for (int s = 0; s < slices; ++s) {
            const float* values = shared.values + (s * T::kPositions + position) * kSlice;
#pragma unroll
            for (int i = 0; i < kSlice; i += kWarp) squares += values[i + lane] * values[i + lane];
        }
        squares = sum_lanes(squares);
        if (lane == 0) shared.squares[position] = squares;
    }
    cluster_sync();
    for (int position = warp; position < T::kPositions; position += kWarps) {
        const int row = top + position / T::kWide, column = left + position % T::kWide;
        if (row >= p.height || column >= p.width) continue;
        float squares = 0.0f;
        for (int i = 0; i < blocks; ++i) squares += in_block(i, shared.squares)[position];
        const float scale = rsqrtf(squares / static_cast<float>(p.channels) + p.eps);
        const float* values = shared.values + position * kSlice;
        const int64_t at = image + (int64_t{row} * p.width + column) * p.channels;
        if (p.y_dtype == Dtype::f32) {
            write<T>(p, values, scale, slices, static_cast<float*>(p.y) + at);
        } else {
            write<T>(p, values, scale, slices, static_cast<bf16*>(p.y) + at);
        }
    }
    cluster_sync();  // no block's memory may be released before it is read
}

// Large tiles read x less often, but their outputs fit one block's memory only if clusters share the channels.
template <class T, class X, class W>
Refusal launch_tiles(const DepthwiseNormParams& p, unsigned cluster, void* stream) {
    const int slices = (p.channels + kSlice - 1) / kSlice;
    const int64_t across = (p.width + T::kWide - 1) / T::kWide, down = (p.height + T::kHeight - 1) / T::kHeight;
    const unsigned shared = Shared<T, X>::bytes((slices + cluster - 1) / cluster);
    return launch(depthwise_norm_kernel<T, X, W>,
                  Shape{p.batch * down * across * cluster, kThreads, shared, cluster, true}, p, stream);
}

template <class X, class W>
Refusal any_chip(const DepthwiseNormParams& p, void* stream) {
    if (architecture(depthwise_norm_kernel<Large, X, W>) < 90) return launch_tiles<Small, X, W>(p, 1, stream);
    unsigned cluster = 1;
    while (cluster < kMaxCluster && static_cast<int>(cluster) * kSlice < p.channels) cluster *= 2;
    return launch_tiles<Large, X, W>(p, cluster, stream);
}

template <class X>
Refusal any_weight(const DepthwiseNormParams& p, void* stream) {
    if (p.weight_dtype == Dtype::f32) return any_chip<X, float>(p, stream);
    return any_chip<X, bf16>(p, stream);
}

}  // namespace

Refusal depthwise_norm(const DepthwiseNormParams& params, void* stream) {
    if (const Refusal refusal = check(params)) return refusal;
    if (params.x_dtype == Dtype::f32) return any_weight<float>(params, stream);
    return any_weight<bf16>(params, stream);
}

}  // namespace flashjanus::cuda
