// The bindings of every CUDA kernel, compiled for the CPU: threads are fibers (cuda_runtime.h beside this file).
#include <cuda_runtime.h>

#include "bindings/bindings.h"

namespace py = pybind11;

PYBIND11_MODULE(cuda_on_cpu, module) {
    flashjanus::bind_cuda(module);
    const auto emulate = [](int architecture) { emulated_architecture = architecture; };
    module.def("emulate", emulate, "Act as sm_NN from now on.");
    const auto order = [](bool backwards) { fibers::backwards = backwards; };
    module.def("order", order, "From now on run threads, warps and blocks from the last to the first, or not.");
    const auto delay = [](const py::list& windows) {
        late_inputs.windows.clear();  // of a launch that was refused
        for (const auto& window : windows) {
            const auto [address, bytes] = window.cast<std::pair<uintptr_t, size_t>>();
            late_inputs.delay(reinterpret_cast<char*>(address), bytes);
        }
    };
    module.def("delay", delay, "(address, bytes) of what the next launch finds only after it has waited.");
    const auto last = [] { return py::make_tuple(launched.blockDim.x, launched.dynamicSmemBytes); };
    module.def("launched", last, "Threads and bytes of dynamic shared memory of a block of the last launch.");
}
