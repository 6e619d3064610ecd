// Stands in for CUDA's header, so that g++ compiles a .cu file and runs it: every thread of a cluster is a fiber that
// gives way at barriers and shuffles. Clusters run one after the other, a block until all of it stands at a barrier of
// its cluster, a warp until it stands at one of its block: the least overlap that the hardware allows, from the first
// to the last or from the last to the first, so a missing barrier shows in one of the two orders. What earlier kernels
// of a stream write is NaN until a kernel that may start early waits for it. Fibers' stacks and shared memory start as
// NaN, a block's shared memory is NaN again once it has ended, and asynchronous copies land when they are waited for. A
// barrier that some threads never reach and a write past the shared memory that was asked for fail the launch.
#pragma once

#include <math.h>

#include <algorithm>
#include <cstddef>
#include <cstdint>
#include <cstring>
#include <vector>

#include "fibers.h"

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__  // dynamic shared memory only: a static one would be a local variable

using cudaError_t = int;
using cudaStream_t = void*;
inline constexpr cudaError_t cudaSuccess = 0;
inline constexpr cudaError_t cudaErrorInvalidConfiguration = 9;
inline constexpr cudaError_t cudaErrorLaunchFailure = 719;

inline const char* cudaGetErrorString(cudaError_t error) {
    return error == cudaSuccess ? "no error" : "launch failure";
}

struct dim3 {
    unsigned x, y, z;
    dim3(unsigned x = 1, unsigned y = 1, unsigned z = 1) : x(x), y(y), z(z) {
    }
};

struct float2 {
    float x, y;
};
struct alignas(16) float4 {
    float x, y, z, w;
};
struct uint2 {
    unsigned x, y;
};
struct alignas(16) uint4 {
    unsigned x, y, z, w;
};

inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
inline uint4 make_uint4(unsigned x, unsigned y, unsigned z, unsigned w) {
    return {x, y, z, w};
}
inline float __uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}
inline uint32_t __float_as_uint(float value) {
    uint32_t bits;
    std::memcpy(&bits, &value, sizeof bits);
    return bits;
}
inline float rsqrtf(float x) {
    return 1.0f / sqrtf(x);
}
inline int __clz(unsigned x) {
    return x ? __builtin_clz(x) : 32;
}
inline int __ffs(unsigned x) {
    return __builtin_ffs(static_cast<int>(x));
}
template <class T>
T __ldcs(const T* from) {
    return *from;
}
using std::max;
using std::min;

inline dim3 gridDim, blockDim, blockIdx, threadIdx;
inline uint4 dynamic_shared[(fibers::kMaxShared + fibers::kGuard) / sizeof(uint4)];

inline void __syncthreads() {
    fibers::wait(fibers::State::at_block_barrier);
}

inline void __syncwarp(unsigned = 0xffffffffu) {
    fibers::wait(fibers::State::at_warp_barrier);
}

// use(lane, at), where at(lane) is what a lane of the warp gives as `value`.
template <class T, class Use>
auto among_lanes(T value, const Use& use) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    const unsigned self = fibers::current, lane = self % fibers::kWarp;
    std::memcpy(&fibers::threads[self].shuffled, &value, sizeof value);
    __syncwarp();
    const auto result = use(lane, [=](unsigned from) {
        T given;
        std::memcpy(&given, &fibers::threads[self - lane + from].shuffled, sizeof given);
        return given;
    });
    __syncwarp();  // nobody writes again before everybody has read
    return result;
}

template <class T>
T __shfl_sync(unsigned, T value, unsigned from) {
    return among_lanes(value, [=](unsigned, const auto& at) { return at(from); });
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
    return among_lanes(value, [=](unsigned lane, const auto& at) { return at(lane ^ lanes); });
}

template <class T>
T __shfl_up_sync(unsigned, T value, unsigned lanes) {
    return among_lanes(value, [=](unsigned lane, const auto& at) { return at(lane < lanes ? lane : lane - lanes); });
}

inline unsigned __ballot_sync(unsigned, bool mine) {
    return among_lanes(mine, [](unsigned, const auto& at) {
        unsigned all = 0;
        for (unsigned lane = 0; lane < fibers::kWarp; ++lane) all |= unsigned{at(lane)} << lane;
        return all;
    });
}

// A fiber gives way at barriers only.
template <class T>
T atomicAdd(T* to, T value) {
    const T before = *to;
    *to += value;
    return before;
}

// What earlier kernels write: NaN until the kernel waits for it.
struct LateInputs {
    struct Window {
        char* at;
        std::vector<char> contents;
    };
    std::vector<Window> windows;

    void delay(char* at, size_t bytes) {
        windows.push_back({at, std::vector<char>(at, at + bytes)});
        std::memset(at, fibers::kPoison, bytes);
    }
    void arrive() {
        for (const Window& window : windows) std::memcpy(window.at, window.contents.data(), window.contents.size());
        windows.clear();
    }
};
inline LateInputs late_inputs;

inline void cudaTriggerProgrammaticLaunchCompletion() {
}
inline void cudaGridDependencySynchronize() {
    late_inputs.arrive();
}

// The architecture that the kernels act as if compiled for.
inline int emulated_architecture = 90;

struct cudaFuncAttributes {
    int ptxVersion;
};

template <class T>
cudaError_t cudaFuncGetAttributes(cudaFuncAttributes* attributes, T*) {
    attributes->ptxVersion = emulated_architecture;
    return cudaSuccess;
}

enum cudaFuncAttribute { cudaFuncAttributeMaxDynamicSharedMemorySize };

template <class T>
cudaError_t cudaFuncSetAttribute(T*, cudaFuncAttribute, size_t bytes) {
    return bytes <= fibers::kMaxShared ? cudaSuccess : cudaErrorInvalidConfiguration;
}

enum cudaLaunchAttributeID { cudaLaunchAttributeClusterDimension, cudaLaunchAttributeProgrammaticStreamSerialization };

struct cudaLaunchAttribute {
    cudaLaunchAttributeID id;
    struct {
        struct {
            unsigned x, y, z;
        } clusterDim;
        int programmaticStreamSerializationAllowed;
    } val;
};

struct cudaLaunchConfig_t {
    dim3 gridDim, blockDim;
    size_t dynamicSmemBytes;
    cudaStream_t stream;
    cudaLaunchAttribute* attrs;
    unsigned numAttrs;
};

// The last launch, for tests.
inline cudaLaunchConfig_t launched;

template <class Params>
cudaError_t cudaLaunchKernelEx(const cudaLaunchConfig_t* config, void (*kernel)(Params), const Params& params) {
    unsigned cluster = 1;
    bool early = false;
    for (unsigned i = 0; i < config->numAttrs; ++i) {
        if (emulated_architecture < 90) return cudaErrorInvalidConfiguration;
        if (config->attrs[i].id == cudaLaunchAttributeClusterDimension) cluster = config->attrs[i].val.clusterDim.x;
        if (config->attrs[i].id == cudaLaunchAttributeProgrammaticStreamSerialization) early = true;
    }
    gridDim = config->gridDim;
    blockDim = config->blockDim;
    launched = *config;
    const size_t shared = config->dynamicSmemBytes;
    if (!gridDim.x || gridDim.x % cluster || cluster > 8) return cudaErrorInvalidConfiguration;
    if (!blockDim.x || blockDim.x > 1024 || shared > fibers::kMaxShared) return cudaErrorInvalidConfiguration;
    const auto select = [](unsigned block, unsigned thread) { blockIdx.x = block, threadIdx.x = thread; };
    fibers::body = [=] { kernel(params); };
    if (!early) late_inputs.arrive();
    bool ran = true;
    const unsigned clusters = gridDim.x / cluster;
    for (unsigned i = 0; i < clusters && ran; ++i) {
        ran = fibers::run(fibers::in_turn(i, clusters) * cluster, cluster, blockDim.x, dynamic_shared, shared, select);
    }
    late_inputs.arrive();
    return ran ? cudaSuccess : cudaErrorLaunchFailure;
}
