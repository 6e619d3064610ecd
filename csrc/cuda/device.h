// What kernels share on the device: elements, sixteen bytes at once, sums of a warp, clusters, early starts.
#pragma once

#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include "kernel.h"

// All shared memory of our kernels, so that the CPU build can poison and guard it (tests/kernels/cuda_on_cpu).
extern __shared__ uint4 dynamic_shared[];

namespace flashjanus::cuda {

constexpr int kWarp = 32;
constexpr unsigned kAllLanes = 0xffffffffu;

using bf16 = uint16_t;  // the upper half of a float32

__device__ inline float widen(float x) {
    return x;
}

__device__ inline float widen(bf16 x) {
    return __uint_as_float(static_cast<uint32_t>(x) << 16);
}

__device__ inline void store(float* to, float x) {
    *to = x;
}

// To nearest, ties to even; NaN stays NaN.
__device__ inline void store(bf16* to, float x) {
    const uint32_t bits = __float_as_uint(x);
    *to = x == x ? static_cast<bf16>((bits + 0x7fffu + (bits >> 16 & 1u)) >> 16) : bf16{0x7fc0};
}

// Sixteen bytes of elements in registers; pack[i], for an i known to the compiler, is element i as a float.
template <class T>
struct Pack {
    static constexpr int kSize = 16 / sizeof(T);
    uint4 bits;

    __device__ float operator[](int i) const {
        const int word = i * static_cast<int>(sizeof(T)) / 4;
        const uint32_t held = word == 0 ? bits.x : word == 1 ? bits.y : word == 2 ? bits.z : bits.w;
        if constexpr (sizeof(T) == 4) return __uint_as_float(held);
        if constexpr (sizeof(T) == 2) return __uint_as_float(i % 2 ? held & 0xffff0000u : held << 16);
        return static_cast<float>(static_cast<int8_t>(held >> i % 4 * 8));
    }
};

__device__ inline uint32_t raw(float x) {
    return __float_as_uint(x);
}

__device__ inline uint32_t raw(bf16 x) {
    return x;
}

__device__ inline uint32_t raw(int8_t x) {
    return static_cast<uint8_t>(x);
}

// The first `count` elements at `from`, zeros after them; nothing beyond is read. kAligned: `from` is aligned to 16
// bytes, and `count` is at most 0 or at least a pack. kStreamed: the data is read once and leaves the caches first.
template <bool kAligned, bool kStreamed = false, class T>
__device__ inline Pack<T> load_pack(const T* from, int count) {
    Pack<T> pack{};
    if constexpr (kAligned) {
        if (count > 0) {
            const uint4* wide = reinterpret_cast<const uint4*>(from);
            pack.bits = kStreamed ? __ldcs(wide) : *wide;
        }
    } else {
        uint32_t words[4] = {};
#pragma unroll
        for (int i = 0; i < Pack<T>::kSize; ++i) {
            constexpr int kPerWord = 4 / sizeof(T);
            if (i < count) words[i / kPerWord] |= raw(from[i]) << i % kPerWord * 8 * static_cast<int>(sizeof(T));
        }
        pack.bits = make_uint4(words[0], words[1], words[2], words[3]);
    }
    return pack;
}

// The sum over 2 * kHalf neighboring lanes, in every one of them.
template <int kHalf = kWarp / 2>
__device__ inline float sum_lanes(float x) {
#pragma unroll
    for (int lanes = kHalf; lanes; lanes /= 2) x += __shfl_xor_sync(kAllLanes, x, lanes);
    return x;
}

#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ < 900
__device__ inline unsigned cluster_rank() {
    return 0;
}

__device__ inline unsigned cluster_size() {
    return 1;
}

__device__ inline void cluster_sync() {
    __syncthreads();
}

template <class T>
__device__ inline T* in_block(unsigned, T* shared) {
    return shared;
}

__device__ inline void start_next() {
}

__device__ inline void wait_for_inputs() {
}
#else
__device__ inline unsigned cluster_rank() {
    return cooperative_groups::this_cluster().block_rank();
}

__device__ inline unsigned cluster_size() {
    return cooperative_groups::this_cluster().num_blocks();
}

__device__ inline void cluster_sync() {
    cooperative_groups::this_cluster().sync();
}

// The same place in the shared memory of the cluster's block `rank`.
template <class T>
__device__ inline T* in_block(unsigned rank, T* shared) {
    return cooperative_groups::this_cluster().map_shared_rank(shared, rank);
}

// Lets the stream's next kernel start, up to its own wait_for_inputs(), once every block of this one has called it.
__device__ inline void start_next() {
    cudaTriggerProgrammaticLaunchCompletion();
}

// Returns when earlier kernels of the stream have ended. Before it, a kernel reads constants only and writes nothing.
__device__ inline void wait_for_inputs() {
    cudaGridDependencySynchronize();
}
#endif

}  // namespace flashjanus::cuda
