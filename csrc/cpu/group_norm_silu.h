#pragma once

#include "kernel.h"

namespace flashjanus {

// The most groups of channels.
inline constexpr int32_t kMaxNormGroups = 128;

// y = (x - mean) / sqrt(var + eps) * weight + bias, with the mean and variance of each image's groups of channels, and
// where silu is not 0, y = silu(y); all in float32.
struct GroupNormSiluParams {
    const void* x;        // [batch, positions, channels]
    const float* weight;  // [channels]
    const float* bias;    // [channels]
    void* y;              // [batch, positions, channels]
    Dtype dtype;          // of x and y
    float eps;
    int32_t silu;
    int32_t batch;
    int32_t positions;
    int32_t channels;
    int32_t groups;
    int32_t threads;
};

inline Refusal check(const GroupNormSiluParams& p) {
    if (p.batch < 1 || p.positions < 1 || p.channels < 1 || p.groups < 1) return expected::sizes;
    if (p.channels > kMaxNormChannels) return expected::norm_channels;
    if (p.groups > kMaxNormGroups || p.channels % p.groups) {
        return "expected at most 128 groups, and channels a multiple of them";
    }
    if (!valid(p.dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.x && p.weight && p.bias && p.y ? nullptr : expected::tensors;
}

}  // namespace flashjanus
