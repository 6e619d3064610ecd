// The CUDA kernels: one entry per kernel. `stream` is a cudaStream_t; this header needs no CUDA header.
#pragma once

#include "params.h"

// Every kernel of this folder: its name, and its struct of arguments.
#define FLASHJANUS_CUDA_KERNELS(KERNEL)             \
    KERNEL(flow_update, FlowUpdateParams)           \
    KERNEL(gemv, GemvParams)                        \
    KERNEL(decode_attention, DecodeAttentionParams) \
    KERNEL(depthwise_norm, DepthwiseNormParams)     \
    KERNEL(sample_token, SampleTokenParams)

namespace flashjanus::cuda {

#define FLASHJANUS_DECLARE(kernel, Params) Status kernel(const Params& params, void* stream);
FLASHJANUS_CUDA_KERNELS(FLASHJANUS_DECLARE)
#undef FLASHJANUS_DECLARE

// What the CUDA runtime says about the last launch_failed of this thread.
const char* last_error();

}  // namespace flashjanus::cuda
