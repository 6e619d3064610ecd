// Stands in for CUDA's header, so that g++ compiles a .cu file and runs it: every thread of a block is a fiber that
// gives way at barriers and shuffles. Blocks run one after the other, and a thread runs until its next barrier before
// the following thread starts: the least overlap that the hardware allows, so a missing barrier shows.
// Fibers' stacks start as NaN. A barrier that some threads of the block (or warp) never reach fails the launch.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <vector>

#define __global__
#define __device__
#define __grid_constant__
#define __launch_bounds__(...)
#define __shared__ static

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

inline float2 make_float2(float x, float y) {
    return {x, y};
}
inline float4 make_float4(float x, float y, float z, float w) {
    return {x, y, z, w};
}
inline float __uint_as_float(uint32_t bits) {
    float value;
    std::memcpy(&value, &bits, sizeof value);
    return value;
}

inline dim3 gridDim, blockDim, blockIdx, threadIdx;

namespace fibers {

constexpr unsigned kWarp = 32;
enum class State { ready, at_block_barrier, at_warp_barrier, done };

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(64 * 1024, char(0xff));
    State state = State::ready;
    uint64_t shuffled = 0;
};

inline std::vector<Fiber> block;
inline ucontext_t scheduler;
inline std::function<void()> body;

inline void enter() {
    body();
    block[threadIdx.x].state = State::done;
}

inline void wait(State barrier) {
    const unsigned self = threadIdx.x;
    block[self].state = barrier;
    swapcontext(&block[self].context, &scheduler);
}

// Lets threads first..last pass if all of them stand at the barrier.
inline bool release(unsigned first, unsigned last, State barrier) {
    for (unsigned i = first; i < last; ++i) {
        if (block[i].state != barrier) return false;
    }
    for (unsigned i = first; i < last; ++i) block[i].state = State::ready;
    return true;
}

inline bool run_block() {
    const unsigned count = blockDim.x;
    block = std::vector<Fiber>(count);
    for (Fiber& fiber : block) {
        getcontext(&fiber.context);
        fiber.context.uc_stack = {fiber.stack.data(), 0, fiber.stack.size()};
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, enter, 0);
    }
    for (;;) {
        for (unsigned i = 0; i < count; ++i) {
            threadIdx.x = i;
            if (block[i].state == State::ready) swapcontext(&scheduler, &block[i].context);
        }
        bool progress = release(0, count, State::at_block_barrier);
        for (unsigned i = 0; i < count; i += kWarp) {
            progress |= release(i, std::min(i + kWarp, count), State::at_warp_barrier);
        }
        if (!progress) break;
    }
    return std::all_of(block.begin(), block.end(), [](const Fiber& fiber) { return fiber.state == State::done; });
}

}  // namespace fibers

inline void __syncthreads() {
    fibers::wait(fibers::State::at_block_barrier);
}

inline void __syncwarp(unsigned = 0xffffffffu) {
    fibers::wait(fibers::State::at_warp_barrier);
}

template <class T>
T __shfl_xor_sync(unsigned, T value, int lanes) {
    static_assert(sizeof(T) <= sizeof(uint64_t));
    std::memcpy(&fibers::block[threadIdx.x].shuffled, &value, sizeof value);
    __syncwarp();
    std::memcpy(&value, &fibers::block[threadIdx.x ^ lanes].shuffled, sizeof value);
    __syncwarp();  // nobody writes again before everybody has read
    return value;
}

template <class Params>
cudaError_t cudaLaunchKernel(void (*kernel)(Params), dim3 grid, dim3 threads, void** arguments, size_t, cudaStream_t) {
    if (!grid.x || !threads.x || threads.x > 1024) return cudaErrorInvalidConfiguration;
    const Params params = *static_cast<const Params*>(arguments[0]);
    fibers::body = [=] { kernel(params); };
    gridDim = grid;
    blockDim = threads;
    for (blockIdx.x = 0; blockIdx.x < grid.x; ++blockIdx.x) {
        if (!fibers::run_block()) return cudaErrorLaunchFailure;
    }
    return cudaSuccess;
}
