// Gated SiLU, also into int8. See flow_update.cpp for what a file compiled per instruction set must not do.
#include "cpu/silu_mul.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/parallel.h"
#include "cpu/quantize.h"

template <class T, class Y>
void rows(const SiluMulParams& p) {
    parallel_for(p.threads, p.rows, 0.5 * p.rows * p.channels, [&](int64_t row) {
        const auto r = static_cast<int32_t>(row);
        const T* gate = static_cast<const T*>(p.x) + row * 2 * p.channels;
        const T* up = gate + p.channels;
        Y* y = static_cast<Y*>(p.y) + int64_t{r} * p.channels;
        write(p, r, y, [&](auto* to) {
            for (int32_t c = 0; c < p.channels; c += kLanes) {
                const int32_t count = p.channels - c;
                store(to + c, silu(load(gate + c, count)) * load(up + c, count), count);
            }
        });
    });
}

}  // namespace

void silu_mul(const SiluMulParams& p) {
    with_type(p.dtype, [&](auto x) {
        if (p.scale) return rows<decltype(x), int8_t>(p);
        rows<decltype(x), decltype(x)>(p);
    });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
