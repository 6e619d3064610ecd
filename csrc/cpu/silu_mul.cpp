// Gated SiLU. See cfg_euler.cpp for what a file compiled per instruction set must not do.
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

template <class T>
void rows(const SiluMulParams& p) {
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int32_t r = 0; r < p.rows; ++r) {
        const T* gate = static_cast<const T*>(p.x) + int64_t{r} * 2 * p.channels;
        const T* up = gate + p.channels;
        T* y = static_cast<T*>(p.y) + int64_t{r} * p.channels;
        for (int32_t c = 0; c < p.channels; c += kLanes) {
            const int32_t count = p.channels - c;
            store(y + c, silu(load(gate + c, count)) * load(up + c, count), count);
        }
    }
}

}  // namespace

void silu_mul(const SiluMulParams& p) {
    if (p.dtype == Dtype::f32) return rows<float>(p);
    return rows<bf16>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
