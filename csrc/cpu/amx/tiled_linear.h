#pragma once

#include "kernel.h"

namespace flashjanus {

// What follows a product: nothing, silu(gate) * up of its first and its last half, or the exact GELU.
enum class Activation : int32_t { none = 0, gated_silu = 1, gelu = 2 };

// y = act(norm(x) w^T * scale + bias) + residual for any number of rows, by AMX. w is in tiles: [out / 16][columns / k]
// blocks of k x 16, k = 32 in bf16 and 64 in int8, each [k / v][16][v] with v values of a column side by side in four
// bytes. With scale, w is int8 and each row of norm(x) is quantized as in cpu/quantize.h.
struct TiledLinearParams {
    const void* x;         // [rows, columns]
    const float* norm;     // [columns] of RMSNorm, or null
    const void* w;         // gated: 2 * out rows, gates first
    const float* scale;    // one per row of w, or null
    const void* bias;      // one per row of w, or null
    const void* residual;  // [rows, out], or null
    void* y;               // [rows, out]
    Dtype x_dtype;
    Dtype bias_dtype;
    Dtype residual_dtype;
    Dtype y_dtype;
    Activation act;
    float eps;
    int32_t rows;
    int32_t columns;
    int32_t out;
    int32_t threads;
};

inline Refusal check(const TiledLinearParams& p) {
    if (p.rows < 1 || p.columns < 1 || p.out < 1) return expected::sizes;
    if (p.out % 16 || p.columns % (p.scale ? 64 : 32)) {
        return "expected out a multiple of 16, columns of 32 (of 64 where scale is given)";
    }
    if (p.scale && p.columns > kMaxQuantizedChannels) return expected::quantized_channels;
    if (!valid(p.x_dtype) || !valid(p.bias_dtype) || !valid(p.residual_dtype) || !valid(p.y_dtype)) {
        return expected::dtype;
    }
    if (p.act < Activation::none || p.act > Activation::gelu) {
        return "expected act 0 (none), 1 (gated SiLU) or 2 (GELU)";
    }
    if (p.threads < 1) return expected::threads;
    return p.x && p.w && p.y ? nullptr : expected::tensors;
}

}  // namespace flashjanus
