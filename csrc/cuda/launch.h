// Launching a kernel that takes one struct, and keeping what the runtime says when it refuses.
#pragma once

#include <cuda_runtime.h>

#include "params.h"

namespace flashjanus::cuda {

inline thread_local cudaError_t last_launch = cudaSuccess;

template <class Params>
Status launch(void (*kernel)(Params), dim3 grid, dim3 block, const Params& params, void* stream) {
    void* arguments[] = {const_cast<Params*>(&params)};
    last_launch = cudaLaunchKernel(kernel, grid, block, arguments, 0, static_cast<cudaStream_t>(stream));
    return last_launch == cudaSuccess ? Status::ok : Status::launch_failed;
}

}  // namespace flashjanus::cuda
