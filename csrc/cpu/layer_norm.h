#pragma once

#include "kernel.h"

namespace flashjanus {

// total = x + delta (where delta is given), y = (total - mean) / sqrt(var + eps) * weight + bias; all in float32.
struct LayerNormParams {
    const void* x;        // [rows, channels]
    const void* delta;    // [rows, channels], or null
    const float* weight;  // [channels]
    const float* bias;    // [channels]
    void* total;          // [rows, channels], or null with delta
    void* y;              // [rows, channels]
    Dtype x_dtype;        // of x and total
    Dtype delta_dtype;
    Dtype y_dtype;
    float eps;
    int32_t rows;
    int32_t channels;
    int32_t threads;
};

inline Refusal check(const LayerNormParams& p) {
    if (p.rows < 1 || p.channels < 1) return expected::sizes;
    if (!valid(p.x_dtype) || !valid(p.delta_dtype) || !valid(p.y_dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.x && p.weight && p.bias && p.y && !p.delta == !p.total ? nullptr : expected::tensors;
}

}  // namespace flashjanus
