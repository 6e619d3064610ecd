#pragma once

#include "kernel.h"

namespace flashjanus {

// y = act(norm(x) w^T * scale + bias) + residual, for a few rows: one pass over w. norm is RMSNorm, act(gate, up) =
// silu(gate) * up; each is left out where its argument is null or 0.
struct GemvParams {
    const void* x;      // [rows, columns]
    const float* norm;  // [columns], or null
    const void* w;  // [out, columns], of `dtype`, or int8 where scale is given; gated: [2 * out, columns], gates first
    const float* scale;    // one per row of w, or null
    const void* bias;      // [out], or null; not with gated
    const void* residual;  // [rows, out], or null
    void* y;               // [rows, out]
    Dtype dtype;           // of norm(x), w and bias
    Dtype x_dtype;         // `dtype` where norm is null
    Dtype residual_dtype;
    Dtype y_dtype;
    float eps;
    int32_t gated;
    int32_t rows;
    int32_t columns;
    int32_t out;
    int32_t threads;
};

inline Refusal check(const GemvParams& p) {
    if (p.rows < 1 || p.columns < 1 || p.out < 1) return expected::sizes;
    if (p.norm && p.columns > kMaxNormChannels) return expected::norm_channels;
    if (!valid(p.dtype) || !valid(p.x_dtype) || !valid(p.residual_dtype) || !valid(p.y_dtype)) return expected::dtype;
    if (p.x_dtype != p.dtype && !(p.norm && p.x_dtype == Dtype::f32)) {
        return "expected x_dtype as dtype, or 0 (float32) with norm";
    }
    if (p.gated && p.bias) return "expected no bias where gated";
    if (p.threads < 1) return expected::threads;
    return p.x && p.w && p.y ? nullptr : expected::tensors;
}

}  // namespace flashjanus
