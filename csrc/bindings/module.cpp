#include "bindings/bindings.h"
#include "cpu/cpu.h"

namespace py = pybind11;

namespace flashjanus {
namespace {

cpu::Isa isa_named(const std::string& wanted) {
    std::string known;
    for (int i = 0; i < cpu::kIsaCount; ++i) {
        const auto isa = static_cast<cpu::Isa>(i);
        if (wanted == cpu::name(isa)) return isa;
        known += std::string(i ? ", " : "") + cpu::name(isa);
    }
    throw py::value_error("expected an instruction set out of " + known + ", got '" + wanted + "'");
}

void cfg_euler(uintptr_t v, uintptr_t z, uintptr_t guidance, uintptr_t step, uintptr_t steps, int32_t v_dtype,
               int32_t rows, int32_t unconditional, int32_t height, int32_t width, int32_t channels, int32_t patch,
               const std::string& isa) {
    const CfgEulerParams params =
        cfg_euler_params(v, z, guidance, step, steps, v_dtype, rows, unconditional, height, width, channels, patch);
    const cpu::Isa chosen = isa.empty() ? cpu::best() : isa_named(isa);
    Status status;
    {
        py::gil_scoped_release release;
        status = cpu::cfg_euler(params, chosen);
    }
    if (status != Status::ok) {
        throw py::value_error(std::string("cfg_euler: ") + message(status) + ", got " + describe(params) +
                              ", isa=" + cpu::name(chosen));
    }
}

py::list instruction_sets(bool (*keep)(cpu::Isa)) {
    py::list names;
    for (int i = 0; i < cpu::kIsaCount; ++i) {
        const auto isa = static_cast<cpu::Isa>(i);
        if (keep(isa)) names.append(cpu::name(isa));
    }
    return names;
}

py::dict build_info() {
    py::dict info;
    info["compiler"] = FLASHJANUS_COMPILER;
    info["cuda"] = *FLASHJANUS_CUDA_VERSION ? py::object(py::str(FLASHJANUS_CUDA_VERSION)) : py::object(py::none());
    info["cuda_architectures"] = py::str(FLASHJANUS_CUDA_ARCHITECTURES).attr("split")(",");
    if (!*FLASHJANUS_CUDA_ARCHITECTURES) info["cuda_architectures"] = py::list();
    info["instruction_sets_built"] = instruction_sets(cpu::built);
    info["instruction_sets"] = instruction_sets(cpu::available);
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Kernels on raw addresses. Sizes and alignment are checked; what the addresses point at is not.";
    module.def("build_info", &build_info, "Compiler, CUDA version (None in a CPU-only build) and instruction sets.");
    module.def("cfg_euler", &cfg_euler, py::kw_only(), py::arg("v"), py::arg("z"), py::arg("guidance"), py::arg("step"),
               py::arg("steps"), py::arg("v_dtype"), py::arg("rows"), py::arg("unconditional"), py::arg("height"),
               py::arg("width"), py::arg("channels"), py::arg("patch"), py::arg("isa") = "",
               "Guidance, Euler step and advance of the rows, on the CPU. An empty isa takes the best one.");
    bind_cuda(module);
}

}  // namespace flashjanus
