#include "cuda/cuda.h"

#include "bindings/bindings.h"

namespace py = pybind11;

namespace flashjanus {
namespace {

void cfg_euler_cuda(uintptr_t v, uintptr_t z, uintptr_t guidance, uintptr_t step, uintptr_t steps, int32_t v_dtype,
                    int32_t rows, int32_t unconditional, int32_t height, int32_t width, int32_t channels, int32_t patch,
                    uintptr_t stream) {
    const CfgEulerParams params =
        cfg_euler_params(v, z, guidance, step, steps, v_dtype, rows, unconditional, height, width, channels, patch);
    const Status status = cuda::cfg_euler(params, pointer<void>(stream));
    if (status == Status::launch_failed) {
        throw std::runtime_error(std::string("cfg_euler_cuda: ") + message(status) + ": " + cuda::last_error());
    }
    if (status != Status::ok) {
        throw py::value_error(std::string("cfg_euler_cuda: ") + message(status) + ", got " + describe(params));
    }
}

}  // namespace

void bind_cuda(py::module_& module) {
    module.def("cfg_euler_cuda", &cfg_euler_cuda, py::kw_only(), py::arg("v"), py::arg("z"), py::arg("guidance"),
               py::arg("step"), py::arg("steps"), py::arg("v_dtype"), py::arg("rows"), py::arg("unconditional"),
               py::arg("height"), py::arg("width"), py::arg("channels"), py::arg("patch"), py::arg("stream"),
               "Guidance, Euler step and advance of the rows, on a CUDA stream of the current device.");
}

}  // namespace flashjanus
