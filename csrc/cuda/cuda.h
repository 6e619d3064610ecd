// The CUDA kernels: one entry per kernel. `stream` is a cudaStream_t; this header needs no CUDA header.
#pragma once

#include "params.h"

namespace flashjanus::cuda {

Status cfg_euler(const CfgEulerParams& params, void* stream);

// What the CUDA runtime says about the last launch_failed of this thread.
const char* last_error();

}  // namespace flashjanus::cuda
