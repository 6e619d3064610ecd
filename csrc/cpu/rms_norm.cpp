// Residual add and RMSNorm, or RMSNorm alone. See cfg_euler.cpp for what a file compiled per instruction set must not
// do.
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

// `total` is read back by the second pass, rounded as it is stored.
template <class X, class D, class Y>
void row(const RmsNormParams& p, const X* x, const D* delta, X* total, Y* y) {
    F32 squares{};
    for (int32_t c = 0; c < p.channels; c += kLanes) {
        const int32_t count = p.channels - c;
        F32 v = load(x + c, count);
        if (delta) {
            store(total + c, v + load(delta + c, count), count);
            v = load(total + c, count);
        }
        squares += v * v;
    }
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(p.channels) + p.eps);
    const X* from = delta ? total : x;
    for (int32_t c = 0; c < p.channels; c += kLanes) {
        const int32_t count = p.channels - c;
        store(y + c, load(from + c, count) * scale * load(p.weight + c, count), count);
    }
}

template <class X, class D, class Y>
void rows(const RmsNormParams& p) {
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int32_t r = 0; r < p.rows; ++r) {
        const int64_t at = int64_t{r} * p.channels;
        row(p, static_cast<const X*>(p.x) + at, p.delta ? static_cast<const D*>(p.delta) + at : nullptr,
            p.total ? static_cast<X*>(p.total) + at : nullptr, static_cast<Y*>(p.y) + r * p.y_stride);
    }
}

template <class X, class D>
void any_y(const RmsNormParams& p) {
    if (p.y_dtype == Dtype::f32) return rows<X, D, float>(p);
    return rows<X, D, bf16>(p);
}

template <class X>
void any_delta(const RmsNormParams& p) {
    if (p.delta_dtype == Dtype::f32) return any_y<X, float>(p);
    return any_y<X, bf16>(p);
}

}  // namespace

void rms_norm(const RmsNormParams& p) {
    if (p.x_dtype == Dtype::f32) return any_delta<float>(p);
    return any_delta<bf16>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
