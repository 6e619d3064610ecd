#include "cuda/cuda.h"

#include "bindings/bindings.h"

namespace py = pybind11;

namespace flashjanus {
namespace {

// module.kernel_cuda(*, <the members of P>, stream): on a CUDA stream of the current device.
template <class P>
void bind(py::module_& module, const char* kernel, Status (*run)(const P&, void*)) {
    const auto call = [kernel, run](const py::kwargs& given) {
        py::dict arguments(given);
        const auto stream = take<uintptr_t>(kernel, arguments, "stream", 0);
        const P params = take<P>(kernel, arguments);
        expect_empty(kernel, arguments);
        const Status status = run(params, reinterpret_cast<void*>(stream));
        if (status == Status::launch_failed) {
            throw std::runtime_error(std::string(kernel) + ": " + message(status) + ": " + cuda::last_error());
        }
        if (status != Status::ok) {
            throw py::value_error(std::string(kernel) + ": " + message(status) + ", got " + describe(params));
        }
    };
    module.def(kernel, call,
               "A CUDA kernel; its arguments are the members of its struct in csrc/params.h, and stream.");
}

}  // namespace

void bind_cuda(py::module_& module) {
#define FLASHJANUS_BIND(kernel, Params) bind<Params>(module, #kernel "_cuda", &cuda::kernel);
    FLASHJANUS_CUDA_KERNELS(FLASHJANUS_BIND)
}

}  // namespace flashjanus
