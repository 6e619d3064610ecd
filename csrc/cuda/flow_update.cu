// No contraction to FMA: the same bits as on a CPU.
// Compiled with: -fmad=false
#include "cpu/flow_update.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace flashjanus::cuda {
namespace {

constexpr int kMaxThreads = 512;  // 1024 would leave 64 registers a thread, too few for the general patch

// The four velocities of a 2x2 patch, in one load.
__device__ inline float4 load4(const float* v) {
    return *reinterpret_cast<const float4*>(v);
}

__device__ inline float4 load4(const bf16* v) {
    const uint2 bits = *reinterpret_cast<const uint2*>(v);
    return make_float4(__uint_as_float(bits.x << 16), __uint_as_float(bits.x & 0xffff0000u),
                       __uint_as_float(bits.y << 16), __uint_as_float(bits.y & 0xffff0000u));
}

__device__ inline float guided(float cond, float uncond, float guidance) {
    return guidance * cond - (guidance - 1.0f) * uncond;
}

// A row's tensors, and what it does now. uncond is null without guidance, and keep and history are null if they are not
// written.
template <class T>
struct Row {
    FlowEvaluation now;
    const T* cond;
    const T* uncond;
    T* keep;
    float* z;
    float* history;
};

template <class T>
__device__ inline Row<T> row_now(const FlowUpdateParams& p, int row, int step) {
    const int last = p.evaluations - 1;
    const auto* schedule = reinterpret_cast<const FlowEvaluation*>(p.schedule) + int64_t{row} * p.evaluations;
    const FlowEvaluation now = schedule[step < last ? step : last];
    const int64_t size = int64_t{p.height} * p.width * p.channels * p.patch * p.patch;
    const T* cond = static_cast<const T*>(p.v) + row * size;
    T* kept = static_cast<T*>(p.kept) + row * size;
    const T* fresh = row < p.unconditional ? cond + p.rows * size : nullptr;
    const T* uncond = now.guidance == 1.0f ? nullptr : now.reuse != 0.0f ? kept : fresh;
    T* keep = uncond && uncond != kept && now.keep != 0.0f ? kept : nullptr;
    const bool history = now.z_h != 0.0f || now.h_z != 0.0f || now.h_w != 0.0f;
    return {now, cond, uncond, keep, p.z + row * size, history ? p.history + row * size : nullptr};
}

// 1 + share * (std(cond) / std(guided) - 1) over the row's `count` values, the same in every thread of the block.
template <class T>
__device__ inline float rescaling(const Row<T>& row, int count) {
    constexpr int kSums = 4;
    float sums[kSums] = {};
    for (int i = threadIdx.x; i < count; i += blockDim.x) {
        const float cond = widen(row.cond[i]), w = guided(cond, widen(row.uncond[i]), row.now.guidance);
        sums[0] += cond;
        sums[1] += cond * cond;
        sums[2] += w;
        sums[3] += w * w;
    }
    float* shared = reinterpret_cast<float*>(dynamic_shared);
    const int warps = blockDim.x / kWarp;
#pragma unroll
    for (int j = 0; j < kSums; ++j) {
        const float sum = sum_lanes(sums[j]);
        if (threadIdx.x % kWarp == 0) shared[threadIdx.x / kWarp * kSums + j] = sum;
        sums[j] = 0.0f;
    }
    __syncthreads();
    for (int warp = 0; warp < warps; ++warp) {
#pragma unroll
        for (int j = 0; j < kSums; ++j) sums[j] += shared[warp * kSums + j];
    }
    const float n = static_cast<float>(count);
    const float ratio = (sums[1] - sums[0] * sums[0] / n) / (sums[3] - sums[2] * sums[2] / n);
    return 1.0f + row.now.rescale * (sqrtf(ratio) - 1.0f);
}

__device__ inline float moved(const FlowEvaluation& now, float z, float w) {
    return now.z_z * z + now.z_w * w;
}

__device__ inline float remembered(const FlowEvaluation& now, float z, float w) {
    return now.h_z * z + now.h_w * w;
}

template <class T>
__device__ inline void patch_2x2(const Row<T>& row, int from, int to, int line, float scale) {
    const FlowEvaluation& now = row.now;
    float4 w = load4(row.cond + from);
    if (row.uncond) {
        const float4 u = load4(row.uncond + from);
        w = make_float4(guided(w.x, u.x, now.guidance) * scale, guided(w.y, u.y, now.guidance) * scale,
                        guided(w.z, u.z, now.guidance) * scale, guided(w.w, u.w, now.guidance) * scale);
        for (int i = 0; i < 4 && row.keep; ++i) row.keep[from + i] = row.uncond[from + i];
    }
#pragma unroll
    for (int dy = 0; dy < 2; ++dy) {
        const float2 velocity = dy ? make_float2(w.z, w.w) : make_float2(w.x, w.y);
        float2* at = reinterpret_cast<float2*>(row.z + to + dy * line);
        const float2 before = *at;
        float2 after = make_float2(moved(now, before.x, velocity.x), moved(now, before.y, velocity.y));
        if (row.history) {
            float2* history = reinterpret_cast<float2*>(row.history + to + dy * line);
            after = make_float2(after.x + now.z_h * history->x, after.y + now.z_h * history->y);
            *history = make_float2(remembered(now, before.x, velocity.x), remembered(now, before.y, velocity.y));
        }
        *at = after;
    }
}

template <class T>
__device__ inline void patch_any(const Row<T>& row, int from, int to, int line, int patch, float scale) {
    for (int i = 0; i < patch * patch; ++i) {
        float w = widen(row.cond[from + i]);
        if (row.uncond) {
            w = guided(w, widen(row.uncond[from + i]), row.now.guidance) * scale;
            if (row.keep) row.keep[from + i] = row.uncond[from + i];
        }
        const int at = to + i / patch * line + i % patch;
        const float before = row.z[at];
        float after = moved(row.now, before, w);
        if (row.history) {
            after += row.now.z_h * row.history[at];
            row.history[at] = remembered(row.now, before, w);
        }
        row.z[at] = after;
    }
}

// One block per image row, so that one barrier orders every read of step[r] before its advance. A thread takes the
// patch of one channel; neighboring threads take neighboring patches, so z is read and written in whole sectors.
template <class T, bool kPatch2>
__global__ void __launch_bounds__(kMaxThreads) flow_update_kernel(const __grid_constant__ FlowUpdateParams p) {
    const int step = p.step[blockIdx.x];
    if (step >= p.steps[blockIdx.x]) return;  // the same for the whole block

    const int patch = kPatch2 ? 2 : p.patch;
    const int tokens = p.height * p.width;
    const int line = p.width * patch;
    const int area = patch * patch;
    const Row<T> row = row_now<T>(p, blockIdx.x, step);
    const bool rescaled = row.uncond && row.now.rescale != 0.0f;
    const float scale = rescaled ? rescaling(row, tokens * p.channels * area) : 1.0f;

    for (int i = threadIdx.x; i < tokens * p.channels; i += blockDim.x) {
        const int channel = i / tokens;
        const int token = i % tokens;
        const int from = (token * p.channels + channel) * area;
        const int to = (channel * p.height + token / p.width) * patch * line + token % p.width * patch;
        if constexpr (kPatch2) {
            patch_2x2(row, from, to, line, scale);
        } else {
            patch_any(row, from, to, line, patch, scale);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) p.step[blockIdx.x] = step + 1;
}

template <class T>
Refusal launch_rows(const FlowUpdateParams& p, void* stream) {
    const int items = p.height * p.width * p.channels;
    const unsigned threads = items < kMaxThreads ? (items + kWarp - 1) / kWarp * kWarp : kMaxThreads;
    const unsigned shared = threads / kWarp * sizeof(float4);
    const auto kernel = p.patch == 2 ? flow_update_kernel<T, true> : flow_update_kernel<T, false>;
    return launch(kernel, Shape{p.rows, threads, shared}, p, stream);
}

}  // namespace

Refusal flow_update(const FlowUpdateParams& params, void* stream) {
    if (const Refusal refusal = check(params)) return refusal;
    return params.v_dtype == Dtype::f32 ? launch_rows<float>(params, stream) : launch_rows<bf16>(params, stream);
}

}  // namespace flashjanus::cuda
