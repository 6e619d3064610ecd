#include "bindings/bindings.h"

namespace py = pybind11;

namespace flashjanus {

void bind_cuda(py::module_& module) {
#define FLASHJANUS_NAME(kernel, Params) #kernel "_cuda",
    for (const char* name : {FLASHJANUS_CUDA_KERNELS(FLASHJANUS_NAME)}) {
        module.def(name, [name](const py::args&, const py::kwargs&) {
            throw std::runtime_error(std::string(name) +
                                     ": this build has no CUDA kernels; put nvcc on PATH and reinstall with "
                                     "FLASHJANUS_CUDA=on");
        });
    }
}

}  // namespace flashjanus
