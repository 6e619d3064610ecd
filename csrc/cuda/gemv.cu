#include "check.h"
#include "cuda/cuda.h"
#include "cuda/gemv.h"

namespace flashjanus::cuda {

Status gemv(const GemvParams& params, void* stream) {
    const Status status = check(params);
    if (status != Status::ok) return status;
    if (params.dtype == Dtype::f32) return launch_gemv<float, float>(params, stream);
    return launch_gemv<bf16, bf16>(params, stream);
}

}  // namespace flashjanus::cuda
