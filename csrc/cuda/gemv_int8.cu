#include "check.h"
#include "cuda/cuda.h"
#include "cuda/gemv.h"

namespace flashjanus::cuda {

Status gemv_int8(const GemvInt8Params& params, void* stream) {
    const Status status = check(params);
    if (status != Status::ok) return status;
    if (params.dtype == Dtype::f32) return launch_gemv<float, int8_t>(params, stream);
    return launch_gemv<bf16, int8_t>(params, stream);
}

}  // namespace flashjanus::cuda
