#pragma once

#include "kernel.h"

namespace flashjanus {

// Columns of a weight in 4 bits that share a scale.
inline constexpr int32_t kInt4Group = 32;

// y = act(norm(x) w^T) + residual for a few rows, with w in 4 bits: one pass over w. act(gate, up) = silu(gate) * up
// where gated. Each group of 32 columns of a row of norm(x) is quantized as in cpu/quantize.h.
struct Int4LinearParams {
    const void* x;          // [rows, columns]
    const float* norm;      // [columns] of RMSNorm, or null
    const uint8_t* w;       // [out / 16][columns / 32][4][16][4]: bytes of outputs o, whose low half is column 8 i + j
                            // (i of 4, j of 4) and high half column 8 i + 4 + j, plus 8; gated: 2 * out, gates first
    const uint16_t* scale;  // [out / 16][columns / 32][16] in bf16; gated: 2 * out
    const void* residual;   // [rows, out], or null
    void* y;                // [rows, out]
    Dtype x_dtype;
    Dtype residual_dtype;
    Dtype y_dtype;
    float eps;
    int32_t gated;
    int32_t rows;
    int32_t columns;
    int32_t out;
    int32_t threads;
};

inline Refusal check(const Int4LinearParams& p) {
    if (p.rows < 1 || p.columns < 1 || p.out < 1) return expected::sizes;
    if (p.rows > kMaxGemvRows) return expected::few_rows;
    if (p.out % 16 || p.columns % kInt4Group) return "expected out a multiple of 16, columns of 32";
    if (p.columns > kMaxQuantizedChannels) return expected::quantized_channels;
    if (!valid(p.x_dtype) || !valid(p.residual_dtype) || !valid(p.y_dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.x && p.w && p.scale && p.y ? nullptr : expected::tensors;
}

}  // namespace flashjanus
