// Small kernels with known answers, right and wrong, to test the fibers themselves.
#include <cuda_pipeline.h>

#include "cuda/device.h"
#include "cuda/launch.h"

namespace {

using namespace flashjanus::cuda;

struct Params {
    const float* x;
    float* sum;
    int32_t leave_early;
    int32_t barrier;
};

// sum = sum of x over a block of whole warps; thread 0 leaves before the barrier if asked to.
void block_sum(Params p) {
    float* partial = reinterpret_cast<float*>(dynamic_shared);
    const float value = sum_lanes(p.x[threadIdx.x]);
    if (p.leave_early && threadIdx.x == 0) return;
    if (threadIdx.x % 32 == 0) partial[threadIdx.x / 32] = value;
    if (p.barrier) __syncthreads();
    if (threadIdx.x != 0) return;
    *p.sum = 0.0f;
    for (unsigned warp = 0; warp < blockDim.x / 32; ++warp) *p.sum += partial[warp];
}

// sum = sum of x over the blocks of a cluster, which may skip the barrier before the reading or that after it. Blocks
// take turns in order, so the first one shows the former and the last one the latter.
void cluster_sum(Params p) {
    float* own = reinterpret_cast<float*>(dynamic_shared);
    if (threadIdx.x == 0) *own = p.x[blockIdx.x];
    if (p.barrier) cluster_sync();
    const unsigned reader = p.leave_early ? cluster_size() - 1 : 0;
    if (cluster_rank() == reader && threadIdx.x == 0) {
        *p.sum = 0.0f;
        for (unsigned rank = 0; rank < cluster_size(); ++rank) *p.sum += *in_block(rank, own);
    }
    if (!p.leave_early) cluster_sync();
}

// x through shared memory by an asynchronous copy, which may not be waited for.
void copy(Params p) {
    __pipeline_memcpy_async(dynamic_shared + threadIdx.x, p.x + 4 * threadIdx.x, 16);
    __pipeline_commit();
    if (p.barrier) __pipeline_wait_prior(0);
    for (int i = 0; i < 4; ++i) {
        p.sum[4 * threadIdx.x + i] = reinterpret_cast<float*>(dynamic_shared + threadIdx.x)[i];
    }
}

// The threads of all blocks, in the order in which they take turns.
void turns(Params p) {
    static int turn;
    if (turn == static_cast<int>(gridDim.x * blockDim.x)) turn = 0;
    p.sum[turn++] = static_cast<float>(blockIdx.x * blockDim.x + threadIdx.x);
}

}  // namespace

using Kernel = void (*)(Params);

extern "C" int32_t run(int32_t which, const float* x, float* sum, int32_t blocks, int32_t threads, int32_t shared,
                       int32_t leave_early, int32_t barrier, int32_t backwards) {
    fibers::backwards = backwards;
    const Kernel kernel = which == 0 ? block_sum : which == 1 ? cluster_sum : which == 2 ? copy : turns;
    const Shape shape{blocks, static_cast<unsigned>(threads), static_cast<unsigned>(shared),
                      static_cast<unsigned>(blocks)};
    return launch(kernel, shape, Params{x, sum, leave_early, barrier}, nullptr) != nullptr;
}
