#include "host/dispatch.h"

#ifdef FLASHJANUS_AMX
#include <cpuid.h>
#include <sys/syscall.h>
#include <unistd.h>
#endif

namespace flashjanus::cpu {

// Every kernel is compiled once into each of these namespaces.
#define FLASHJANUS_DECLARE(kernel, Params) void kernel(const Params& params);
namespace baseline {
FLASHJANUS_CPU_KERNELS(FLASHJANUS_DECLARE)
}
#ifdef FLASHJANUS_X86
namespace avx2 {
FLASHJANUS_CPU_KERNELS(FLASHJANUS_DECLARE)
}
namespace avx512 {
FLASHJANUS_CPU_KERNELS(FLASHJANUS_DECLARE)
}
#endif
#undef FLASHJANUS_DECLARE
#ifdef FLASHJANUS_AMX
#define FLASHJANUS_DECLARE(kernel, Params) Refusal kernel(const Params& params);
namespace amx {
FLASHJANUS_AMX_KERNELS(FLASHJANUS_DECLARE)
}
#undef FLASHJANUS_DECLARE
#endif

static constexpr char kUnavailable[] = "expected an instruction set that this build and this machine have";

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
    if (isa == Isa::avx2) return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma");
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

bool amx_built() {
#ifdef FLASHJANUS_AMX
    return true;
#else
    return false;
#endif
}

#ifdef FLASHJANUS_AMX
// CPUID leaf 7: AMX-BF16, AMX-TILE and AMX-INT8, AVX512-VNNI; AVX512-BF16 in its subleaf 1. The tiles' state is so
// large that Linux grants it to a process only on request.
static bool tiles_granted() {
    constexpr unsigned kTileFeatures = 1u << 22 | 1u << 24 | 1u << 25, kVnni = 1u << 11, kAvx512Bf16 = 1u << 5;
    constexpr long kRequestPermission = 0x1023, kTileData = 18;
    unsigned a, b, c, d;
    if (!__get_cpuid_count(7, 0, &a, &b, &c, &d) || (d & kTileFeatures) != kTileFeatures) return false;
    if (!(c & kVnni)) return false;
    if (!__get_cpuid_count(7, 1, &a, &b, &c, &d) || !(a & kAvx512Bf16)) return false;
    return syscall(SYS_arch_prctl, kRequestPermission, kTileData) == 0;
}
#endif

bool amx_available() {
#ifdef FLASHJANUS_AMX
    static const bool granted = available(Isa::avx512) && tiles_granted();
    return granted;
#else
    return false;
#endif
}

#ifdef FLASHJANUS_X86
#define FLASHJANUS_CALL(kernel)                            \
    if (isa == Isa::avx512) return avx512::kernel(params); \
    if (isa == Isa::avx2) return avx2::kernel(params);     \
    baseline::kernel(params)
#else
#define FLASHJANUS_CALL(kernel) baseline::kernel(params)
#endif

#define FLASHJANUS_DEFINE(kernel, Params)                          \
    static void call_##kernel(const Params& params, Isa isa) {     \
        FLASHJANUS_CALL(kernel);                                   \
        (void)isa;                                                 \
    }                                                              \
    Refusal kernel(const Params& params, Isa isa) {                \
        if (const Refusal refusal = check(params)) return refusal; \
        if (!available(isa)) return kUnavailable;                  \
        call_##kernel(params, isa);                                \
        return nullptr;                                            \
    }
FLASHJANUS_CPU_KERNELS(FLASHJANUS_DEFINE)
#undef FLASHJANUS_DEFINE

#ifdef FLASHJANUS_AMX
#define FLASHJANUS_CALL_AMX(kernel) return amx::kernel(params)
#else
#define FLASHJANUS_CALL_AMX(kernel) return kUnavailable
#endif
#define FLASHJANUS_DEFINE(kernel, Params)                          \
    Refusal kernel(const Params& params, Isa) {                    \
        if (const Refusal refusal = check(params)) return refusal; \
        if (!amx_available()) return kUnavailable;                 \
        FLASHJANUS_CALL_AMX(kernel);                               \
    }
FLASHJANUS_AMX_KERNELS(FLASHJANUS_DEFINE)

}  // namespace flashjanus::cpu
