#pragma once

#include "kernel.h"

namespace flashjanus {

// y = depthwise7x7(x) + bias (zero padding 3), divided by sqrt(mean over channels of its square + eps), times norm; all
// in float32.
struct DepthwiseNormParams {
    const void* x;       // [batch, height, width, channels]
    const void* weight;  // [7, 7, channels]
    const void* bias;    // [channels], or null
    const float* norm;   // [channels]
    void* y;             // [batch, height, width, channels]
    Dtype x_dtype;
    Dtype weight_dtype;  // of weight and bias
    Dtype y_dtype;
    float eps;
    int32_t batch;
    int32_t height;
    int32_t width;
    int32_t channels;
    int32_t threads;
};

inline Refusal check(const DepthwiseNormParams& p) {
    if (p.batch < 1 || p.height < 1 || p.width < 1 || p.channels < 1) return expected::sizes;
    if (p.channels > kMaxNormChannels) return expected::norm_channels;
    if (!valid(p.x_dtype) || !valid(p.weight_dtype) || !valid(p.y_dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.x && p.weight && p.norm && p.y ? nullptr : expected::tensors;
}

}  // namespace flashjanus
