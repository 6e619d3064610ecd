#include "bindings/bindings.h"
#include "host/dispatch.h"
#include "host/threads.h"

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

template <class P>
void expect_ok(const char* kernel, Refusal refusal, const P& params, cpu::Isa isa) {
    if (!refusal) return;
    throw py::value_error(std::string(kernel) + ": " + refusal + ", got " + describe(params) +
                          ", isa=" + cpu::name(isa));
}

// module.kernel(*, <the members of P>, isa=""): an empty isa takes the best one.
// module.kernel_bound(the same): kernel with these arguments as a function of the number of threads.
template <class P>
void bind_cpu(py::module_& module, const char* kernel, const char* bound_name, Refusal (*run)(const P&, cpu::Isa)) {
    const auto taken = [kernel](const py::kwargs& given) {
        py::dict arguments(given);
        const auto wanted = take<std::string>(kernel, arguments, "isa", "");
        const P params = take<P>(kernel, arguments);
        expect_empty(kernel, arguments);
        return std::pair(params, wanted.empty() ? cpu::best() : isa_named(wanted));
    };
    const auto call = [kernel, run, taken](const py::kwargs& given) {
        const auto [params, isa] = taken(given);
        Refusal refusal;
        {
            py::gil_scoped_release release;
            refusal = run(params, isa);
        }
        expect_ok(kernel, refusal, params, isa);
    };
    const auto bound = [kernel, run, taken](const py::kwargs& given) {
        const auto held = taken(given);
        expect_ok(kernel, check(held.first), held.first, held.second);
        return py::cpp_function([kernel, run, held](int32_t threads) {
            P params = held.first;
            params.threads = threads;
            Refusal refusal;
            {
                py::gil_scoped_release release;
                refusal = run(params, held.second);
            }
            expect_ok(kernel, refusal, params, held.second);
        });
    };
    module.def(kernel, call, "A CPU kernel; its arguments are the members of its struct in csrc/cpu.");
    module.def(bound_name, bound, "The kernel with these arguments, as a function of the number of threads.");
}

py::list instruction_sets(bool (*keep)(cpu::Isa)) {
    py::list names;
    for (int i = 0; i < cpu::kIsaCount; ++i) {
        const auto isa = static_cast<cpu::Isa>(i);
        if (keep(isa)) names.append(cpu::name(isa));
    }
    return names;
}

template <class P>
py::list members() {
    py::list names;
    for (const Field<P>& field : fields<P>()) names.append(field.name);
    return names;
}

py::dict build_info() {
    py::dict info;
    info["compiler"] = FLASHJANUS_COMPILER;
    info["cuda"] = *FLASHJANUS_CUDA_VERSION ? py::object(py::str(FLASHJANUS_CUDA_VERSION)) : py::object(py::none());
    info["cuda_architectures"] = py::str(FLASHJANUS_CUDA_ARCHITECTURES).attr("split")(",");
    if (!*FLASHJANUS_CUDA_ARCHITECTURES) info["cuda_architectures"] = py::list();
    info["instruction_sets_built"] = instruction_sets(cpu::built);
    info["amx_built"] = cpu::amx_built();
    info["amx"] = cpu::amx_available();
    info["instruction_sets"] = instruction_sets(cpu::available);
    return info;
}

}  // namespace

PYBIND11_MODULE(_C, module) {
    module.doc() = "Kernels on raw addresses. Sizes and alignment are checked; what the addresses point at is not.";
    module.def("build_info", &build_info, "Compiler, CUDA version (None in a CPU-only build) and instruction sets.");
    const auto pressed = [](int32_t threads) {
        py::gil_scoped_release release;
        return cpu::pressed(threads);
    };
    module.def("pressed", pressed, "Whether other work presses on the cores of this thread's team of so many threads.");
    module.def(
        "team_for",
        [](int32_t threads, int64_t count, double nanoseconds) {
            const cpu::Team team = cpu::team_for(threads, count, nanoseconds);
            return std::tuple(team.threads, team.parts, team.shared);
        },
        "The threads of a loop, its parts, and whether threads take them as they come.");
    module.def("force_teams", &cpu::force_teams, py::arg("press") = -1, py::arg("worth") = -1.0,
               "For tests: pressed() from now on, and the nanoseconds that are worth another thread; -1: as ever.");
#define FLASHJANUS_BIND(kernel, Params) bind_cpu<Params>(module, #kernel, #kernel "_bound", &cpu::kernel);
    FLASHJANUS_CPU_KERNELS(FLASHJANUS_BIND)
    FLASHJANUS_AMX_KERNELS(FLASHJANUS_BIND)
    py::dict all;
#define FLASHJANUS_MEMBERS(kernel, Params) all[#kernel] = members<Params>();
    FLASHJANUS_CPU_KERNELS(FLASHJANUS_MEMBERS)
    FLASHJANUS_AMX_KERNELS(FLASHJANUS_MEMBERS)
    FLASHJANUS_CUDA_KERNELS(FLASHJANUS_MEMBERS)
    module.attr("members") = all;
    bind_cuda(module);
}

}  // namespace flashjanus
