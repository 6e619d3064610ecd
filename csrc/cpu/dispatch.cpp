#include "cpu/cpu.h"

#include "check.h"

namespace flashjanus::cpu {

// cfg_euler.cpp is compiled once into each of these namespaces.
namespace baseline {
void cfg_euler(const CfgEulerParams& params);
}
#ifdef FLASHJANUS_X86
namespace avx2 {
void cfg_euler(const CfgEulerParams& params);
}
namespace avx512 {
void cfg_euler(const CfgEulerParams& params);
}
#endif

const char* name(Isa isa) {
    switch (isa) {
        case Isa::baseline: return "baseline";
        case Isa::avx2: return "avx2";
        case Isa::avx512: return "avx512";
    }
    return "unknown";
}

bool built(Isa isa) {
#ifdef FLASHJANUS_X86
    return isa == Isa::baseline || isa == Isa::avx2 || isa == Isa::avx512;
#else
    return isa == Isa::baseline;
#endif
}

bool available(Isa isa) {
    if (isa == Isa::baseline) return true;
#ifdef FLASHJANUS_X86
    // These also ask whether the operating system saves the wide registers.
    if (isa == Isa::avx2) return __builtin_cpu_supports("avx2");
    if (isa == Isa::avx512) {
        return __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") &&
               __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vl");
    }
#endif
    return false;
}

Isa best() {
    if (available(Isa::avx512)) return Isa::avx512;
    return available(Isa::avx2) ? Isa::avx2 : Isa::baseline;
}

Status cfg_euler(const CfgEulerParams& params, Isa isa) {
    const Status status = check(params);
    if (status != Status::ok) return status;
    if (!available(isa)) return Status::isa_unavailable;
#ifdef FLASHJANUS_X86
    if (isa == Isa::avx512) {
        avx512::cfg_euler(params);
        return Status::ok;
    }
    if (isa == Isa::avx2) {
        avx2::cfg_euler(params);
        return Status::ok;
    }
#endif
    baseline::cfg_euler(params);
    return Status::ok;
}

}  // namespace flashjanus::cpu
