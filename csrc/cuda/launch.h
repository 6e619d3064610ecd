// Launches a kernel that takes one struct, and keeps the runtime's error if that fails.
#pragma once

#include <cuda_runtime.h>

#include "kernel.h"

namespace flashjanus::cuda {

// The result of this thread's last launch.
inline thread_local cudaError_t last_launch = cudaSuccess;

struct Shape {
    int64_t blocks;  // a multiple of cluster
    unsigned threads;
    unsigned shared = 0;   // bytes of dynamic shared memory a block
    unsigned cluster = 1;  // blocks that read each other's shared memory; more than 1 from sm_90 on
    bool early = false;    // the kernel calls wait_for_inputs(): where the chip can, it starts before they are written
};

// The virtual architecture, e.g. 90, of the kernel's code that this device runs; 0 where there is none.
template <class Params>
int architecture(void (*kernel)(Params)) {
    cudaFuncAttributes attributes{};
    return cudaFuncGetAttributes(&attributes, kernel) == cudaSuccess ? attributes.ptxVersion : 0;
}

template <class Params>
Refusal launch(void (*kernel)(Params), const Shape& shape, const Params& params, void* stream) {
    if (shape.blocks > INT32_MAX) return "expected sizes that make fewer than 2^31 blocks";
    cudaLaunchAttribute attributes[2];
    cudaLaunchConfig_t config{};
    config.gridDim = dim3(static_cast<unsigned>(shape.blocks));
    config.blockDim = dim3(shape.threads);
    config.dynamicSmemBytes = shape.shared;
    config.stream = static_cast<cudaStream_t>(stream);
    config.attrs = attributes;
    if (shape.cluster > 1) {
        cudaLaunchAttribute& cluster = attributes[config.numAttrs++];
        cluster.id = cudaLaunchAttributeClusterDimension;
        cluster.val.clusterDim = {shape.cluster, 1, 1};
    }
    if (shape.early && architecture(kernel) >= 90) {
        cudaLaunchAttribute& early = attributes[config.numAttrs++];
        early.id = cudaLaunchAttributeProgrammaticStreamSerialization;
        early.val.programmaticStreamSerializationAllowed = 1;
    }
    last_launch = cudaSuccess;
    if (shape.shared > 48 * 1024) {  // a kernel has to ask for more than this
        last_launch = cudaFuncSetAttribute(kernel, cudaFuncAttributeMaxDynamicSharedMemorySize, shape.shared);
    }
    if (last_launch == cudaSuccess) last_launch = cudaLaunchKernelEx(&config, kernel, params);
    return last_launch == cudaSuccess ? nullptr : "the CUDA runtime refused the launch";
}

}  // namespace flashjanus::cuda
