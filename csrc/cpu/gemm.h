#pragma once

#include "kernel.h"

namespace flashjanus {

// y = x w^T * scale + bias for many rows, multiplied in float32.
struct GemmParams {
    const void* x;       // [rows, columns]
    const void* w;       // [out, columns], of `dtype`, or int8 where scale is given
    const float* scale;  // one per row of w, or null
    const void* bias;    // [out], or null
    void* y;             // [rows, out]
    Dtype dtype;         // of x, w and bias
    Dtype y_dtype;
    int32_t rows;
    int32_t columns;
    int32_t out;
    int32_t threads;
};

inline Refusal check(const GemmParams& p) {
    if (p.rows < 1 || p.columns < 1 || p.out < 1) return expected::sizes;
    if (!valid(p.dtype) || !valid(p.y_dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.x && p.w && p.y ? nullptr : expected::tensors;
}

}  // namespace flashjanus
