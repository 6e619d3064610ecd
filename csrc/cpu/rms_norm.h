#pragma once

#include "kernel.h"

namespace flashjanus {

// total = x + delta (where delta is given), y = total / sqrt(mean(total^2) + eps) * weight; mean and product in
// float32. Where scale is given, y in int8: see cpu/quantize.h.
struct RmsNormParams {
    const void* x;        // [rows, channels]
    const void* delta;    // [rows, channels], or null
    const float* weight;  // [channels]
    void* total;          // [rows, channels], or null with delta
    void* y;              // [rows, channels], rows `y_stride` apart
    float* scale;         // [rows], or null
    Dtype x_dtype;        // of x and total
    Dtype delta_dtype;
    Dtype y_dtype;  // without scale
    float eps;
    int32_t rows;
    int32_t channels;
    int64_t y_stride;
    int32_t threads;
};

inline Refusal check(const RmsNormParams& p) {
    if (p.rows < 1 || p.channels < 1) return expected::sizes;
    if (p.scale && p.channels > kMaxQuantizedChannels) return expected::quantized_channels;
    if (!valid(p.x_dtype) || !valid(p.delta_dtype) || !valid(p.y_dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.x && p.weight && p.y && !p.delta == !p.total ? nullptr : expected::tensors;
}

}  // namespace flashjanus
