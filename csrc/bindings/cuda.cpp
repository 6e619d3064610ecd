#include "bindings/bindings.h"
#include "cuda/launch.h"

namespace py = pybind11;

namespace flashjanus {

namespace cuda {
#define FLASHJANUS_DECLARE(kernel, Params) Refusal kernel(const Params& params, void* stream);
FLASHJANUS_CUDA_KERNELS(FLASHJANUS_DECLARE)
}  // namespace cuda

namespace {

// module.kernel_cuda(*, <the members of P>, stream): on a CUDA stream of the current device.
template <class P>
void bind(py::module_& module, const char* kernel, Refusal (*run)(const P&, void*)) {
    const auto call = [kernel, run](const py::kwargs& given) {
        py::dict arguments(given);
        const auto stream = take<uintptr_t>(kernel, arguments, "stream", 0);
        const P params = take<P>(kernel, arguments);
        expect_empty(kernel, arguments);
        cuda::last_launch = cudaSuccess;
        const Refusal refusal = run(params, reinterpret_cast<void*>(stream));
        if (!refusal) return;
        if (cuda::last_launch != cudaSuccess) {
            const char* why = cudaGetErrorString(cuda::last_launch);
            throw std::runtime_error(std::string(kernel) + ": " + refusal + ": " + why);
        }
        throw py::value_error(std::string(kernel) + ": " + refusal + ", got " + describe(params));
    };
    module.def(kernel, call, "A CUDA kernel; its arguments are the members of its struct in csrc/cpu, and stream.");
}

}  // namespace

void bind_cuda(py::module_& module) {
#define FLASHJANUS_BIND(kernel, Params) bind<Params>(module, #kernel "_cuda", &cuda::kernel);
    FLASHJANUS_CUDA_KERNELS(FLASHJANUS_BIND)
}

}  // namespace flashjanus
