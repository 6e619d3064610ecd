// Residual add and RMSNorm, or RMSNorm alone, also into int8. See flow_update.cpp for what a file compiled per
// instruction set must not do.
#include "cpu/rms_norm.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/norm.h"
#include "cpu/parallel.h"
#include "cpu/quantize.h"

// total = x + delta, rounded as it is stored; the sum of its squares.
template <class X, class D>
float add(const X* x, const D* delta, X* total, int32_t channels) {
    F32 squares{};
    for (int32_t c = 0; c < channels; c += kLanes) {
        const int32_t count = channels - c;
        store(total + c, load(x + c, count) + load(delta + c, count), count);
        const F32 v = load(total + c, count);
        squares += v * v;
    }
    return sum(squares);
}

template <class X, class D, class Y>
void rows(const RmsNormParams& p) {
    parallel_for(p.threads, p.rows, (p.scale ? 0.8 : 0.4) * p.rows * p.channels, [&](int64_t row) {
        const auto r = static_cast<int32_t>(row);
        const int64_t at = row * p.channels;
        const X* x = static_cast<const X*>(p.x) + at;
        Y* y = static_cast<Y*>(p.y) + r * p.y_stride;
        if (p.delta) {
            X* total = static_cast<X*>(p.total) + at;
            const float squares = add(x, static_cast<const D*>(p.delta) + at, total, p.channels);
            write(p, r, y, [&](auto* to) { scale_by_rms(total, squares, p.weight, p.eps, p.channels, to); });
        } else {
            const float squares = sum_of_squares(x, p.channels);
            write(p, r, y, [&](auto* to) { scale_by_rms(x, squares, p.weight, p.eps, p.channels, to); });
        }
    });
}

}  // namespace

void rms_norm(const RmsNormParams& p) {
    with_type(p.x_dtype, [&](auto x) {
        with_type(p.delta_dtype, [&](auto delta) {
            if (p.scale) return rows<decltype(x), decltype(delta), int8_t>(p);
            with_type(p.y_dtype, [&](auto y) { rows<decltype(x), decltype(delta), decltype(y)>(p); });
        });
    });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
