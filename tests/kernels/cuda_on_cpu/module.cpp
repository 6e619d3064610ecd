// The bindings of every CUDA kernel, compiled for the CPU: threads are fibers (cuda_runtime.h beside this file).
#include "bindings/bindings.h"

PYBIND11_MODULE(cuda_on_cpu, module) {
    flashjanus::bind_cuda(module);
}
