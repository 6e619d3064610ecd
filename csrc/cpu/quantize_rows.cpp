// Rows into int8. See flow_update.cpp for what a file compiled per instruction set must not do.
#include "cpu/quantize_rows.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/parallel.h"
#include "cpu/quantize.h"

template <class T>
void rows(const QuantizeRowsParams& p) {
    parallel_for(p.threads, p.rows, 0.5 * p.rows * p.channels, [&](int64_t row) {
        const auto r = static_cast<int32_t>(row);
        const int64_t at = row * p.channels;
        const T* x = static_cast<const T*>(p.x) + at;
        write(p, r, static_cast<int8_t*>(p.q) + at, [&](float* to) {
            for (int32_t c = 0; c < p.channels; c += kLanes) store(to + c, load(x + c, p.channels - c), p.channels - c);
        });
    });
}

}  // namespace

void quantize_rows(const QuantizeRowsParams& p) {
    with_type(p.dtype, [&](auto x) { rows<decltype(x)>(p); });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
