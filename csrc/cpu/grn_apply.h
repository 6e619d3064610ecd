#pragma once

#include "kernel.h"

namespace flashjanus {

// n = sqrt(sumsq) / (mean over channels of sqrt(sumsq) + 1e-6), o = bias + (weight * n + 1) * y.
struct GrnApplyParams {
    const void* y;        // [batch, positions, channels]
    const float* sumsq;   // [batch, channels]
    const float* weight;  // [channels]
    const float* bias;    // [channels]
    void* o;              // [batch, positions, channels]
    Dtype dtype;          // of y and o
    int32_t batch;
    int32_t positions;
    int32_t channels;
    int32_t threads;
};

inline Refusal check(const GrnApplyParams& p) {
    if (p.batch < 1 || p.positions < 1 || p.channels < 1) return expected::sizes;
    if (!valid(p.dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.y && p.sumsq && p.weight && p.bias && p.o ? nullptr : expected::tensors;
}

}  // namespace flashjanus
