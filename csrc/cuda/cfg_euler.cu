#include "check.h"
#include "cuda/cuda.h"
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

template <class T>
__device__ inline void patch_2x2(const T* cond, const T* uncond, float* z, int line, float guidance, float scale) {
    float4 velocity = load4(cond);
    if (uncond) {
        const float4 u = load4(uncond);
        velocity = make_float4(guided(velocity.x, u.x, guidance), guided(velocity.y, u.y, guidance),
                               guided(velocity.z, u.z, guidance), guided(velocity.w, u.w, guidance));
    }
    float2* top = reinterpret_cast<float2*>(z);
    float2* bottom = reinterpret_cast<float2*>(z + line);
    *top = make_float2(top->x + velocity.x * scale, top->y + velocity.y * scale);
    *bottom = make_float2(bottom->x + velocity.z * scale, bottom->y + velocity.w * scale);
}

template <class T>
__device__ inline void patch_any(const T* cond, const T* uncond, float* z, int line, int patch, float guidance,
                                 float scale) {
    for (int dy = 0; dy < patch; ++dy) {
        for (int dx = 0; dx < patch; ++dx) {
            const int i = dy * patch + dx;
            float velocity = widen(cond[i]);
            if (uncond) velocity = guided(velocity, widen(uncond[i]), guidance);
            z[dy * line + dx] += velocity * scale;
        }
    }
}

// One block per image row, so that one barrier orders every read of step[r] before its advance. A thread takes the
// patch of one channel; neighbouring threads take neighbouring patches, so z is read and written in whole sectors.
template <class T, bool kPatch2>
__global__ void __launch_bounds__(kMaxThreads) cfg_euler_kernel(const __grid_constant__ CfgEulerParams p) {
    const int row = blockIdx.x;
    const int step = p.step[row];
    const int steps = p.steps[row];
    if (step >= steps) return;  // the same for the whole block

    const int patch = kPatch2 ? 2 : p.patch;
    const int area = patch * patch;
    const int tokens = p.height * p.width;
    const int line = p.width * patch;
    const int64_t size = int64_t{tokens} * p.channels * area;
    const T* cond = static_cast<const T*>(p.v) + row * size;
    const T* uncond = row < p.unconditional ? cond + p.rows * size : nullptr;
    float* z = p.z + row * size;
    const float guidance = p.guidance[row];
    const float scale = 1.0f / static_cast<float>(steps);

    for (int i = threadIdx.x; i < tokens * p.channels; i += blockDim.x) {
        const int channel = i / tokens;
        const int token = i % tokens;
        const int from = (token * p.channels + channel) * area;
        const int to = (channel * p.height + token / p.width) * patch * line + token % p.width * patch;
        const T* unguided = uncond ? uncond + from : nullptr;
        if constexpr (kPatch2) {
            patch_2x2(cond + from, unguided, z + to, line, guidance, scale);
        } else {
            patch_any(cond + from, unguided, z + to, line, patch, guidance, scale);
        }
    }
    __syncthreads();
    if (threadIdx.x == 0) p.step[row] = step + 1;
}

template <class T>
Status launch_rows(const CfgEulerParams& p, void* stream) {
    const int items = p.height * p.width * p.channels;
    const int threads = items < kMaxThreads ? (items + 31) / 32 * 32 : kMaxThreads;
    const auto kernel = p.patch == 2 ? cfg_euler_kernel<T, true> : cfg_euler_kernel<T, false>;
    return launch(kernel, Shape{p.rows, static_cast<unsigned>(threads)}, p, stream);
}

}  // namespace

Status cfg_euler(const CfgEulerParams& params, void* stream) {
    const Status status = check(params);
    if (status != Status::ok) return status;
    return params.v_dtype == Dtype::f32 ? launch_rows<float>(params, stream) : launch_rows<bf16>(params, stream);
}

}  // namespace flashjanus::cuda
