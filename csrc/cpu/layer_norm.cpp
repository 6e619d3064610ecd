// Residual add and LayerNorm, or LayerNorm alone. See flow_update.cpp for what a file compiled per instruction set must
// not do.
#include "cpu/layer_norm.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/parallel.h"

// `total` is read back by the later passes, rounded as it is stored.
template <class X, class D, class Y>
void row(const LayerNormParams& p, const X* x, const D* delta, X* total, Y* y) {
    F32 totals{};
    for (int32_t c = 0; c < p.channels; c += kLanes) {
        const int32_t count = p.channels - c;
        F32 v = load(x + c, count);
        if (delta) {
            store(total + c, v + load(delta + c, count), count);
            v = load(total + c, count);
        }
        totals += v;
    }
    const X* from = delta ? total : x;
    const float mean = sum(totals) / static_cast<float>(p.channels);
    F32 squares{};
    for (int32_t c = 0; c < p.channels; c += kLanes) {
        const F32 v = first_lanes(load(from + c, p.channels - c) - mean, p.channels - c);
        squares += v * v;
    }
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(p.channels) + p.eps);
    for (int32_t c = 0; c < p.channels; c += kLanes) {
        const int32_t count = p.channels - c;
        const F32 normed = (load(from + c, count) - mean) * scale;
        store(y + c, normed * load(p.weight + c, count) + load(p.bias + c, count), count);
    }
}

template <class X, class D, class Y>
void rows(const LayerNormParams& p) {
    parallel_for(p.threads, p.rows, 0.6 * p.rows * p.channels, [&](int64_t r) {
        const int64_t at = r * p.channels;
        row(p, static_cast<const X*>(p.x) + at, p.delta ? static_cast<const D*>(p.delta) + at : nullptr,
            p.total ? static_cast<X*>(p.total) + at : nullptr, static_cast<Y*>(p.y) + at);
    });
}

}  // namespace

void layer_norm(const LayerNormParams& p) {
    with_type(p.x_dtype, [&](auto x) {
        with_type(p.delta_dtype, [&](auto delta) {
            with_type(p.y_dtype, [&](auto y) { rows<decltype(x), decltype(delta), decltype(y)>(p); });
        });
    });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
