// Small kernels with known answers, right and wrong, to test the fibers themselves.
#include "check.h"
#include "cuda/launch.h"

namespace {

struct Params {
    const float* x;
    float* sum;
    int32_t leave_early;
    int32_t barrier;
};

// sum = sum of x over a block of whole warps; thread 0 leaves before the barrier if asked to.
void block_sum(Params p) {
    __shared__ float partial[32];
    float value = p.x[threadIdx.x];
    for (int lanes = 16; lanes; lanes /= 2) value += __shfl_xor_sync(0xffffffffu, value, lanes);
    if (p.leave_early && threadIdx.x == 0) return;
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    if (p.barrier) __syncthreads();
    if (threadIdx.x != 0) return;
    *p.sum = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) *p.sum += partial[warp];
}

}  // namespace

extern "C" int32_t block_sum_of(const float* x, float* sum, int32_t threads, int32_t leave_early, int32_t barrier) {
    return static_cast<int32_t>(
        flashjanus::cuda::launch(block_sum, dim3(1), dim3(threads), Params{x, sum, leave_early, barrier}, nullptr));
}
