// Rows into int8. See flow_update.cpp for what a file compiled per instruction set must not do.
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/quantise.h"

template <class T>
void rows(const QuantiseRowsParams& p) {
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int32_t r = 0; r < p.rows; ++r) {
        const int64_t at = int64_t{r} * p.channels;
        const T* x = static_cast<const T*>(p.x) + at;
        write(p, r, static_cast<int8_t*>(p.q) + at, [&](float* to) {
            for (int32_t c = 0; c < p.channels; c += kLanes) store(to + c, load(x + c, p.channels - c), p.channels - c);
        });
    }
}

}  // namespace

void quantise_rows(const QuantiseRowsParams& p) {
    with_type(p.dtype, [&](auto x) { rows<decltype(x)>(p); });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
