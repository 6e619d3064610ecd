#pragma once

#include "kernel.h"

namespace flashjanus {

// y = gelu(x) (exact, by erf), sumsq = the sum over positions of y^2 as stored.
struct GeluGrnStatsParams {
    const void* x;  // [batch, positions, channels]
    void* y;        // [batch, positions, channels]
    float* sumsq;   // [batch, channels]
    Dtype dtype;    // of x and y
    int32_t batch;
    int32_t positions;
    int32_t channels;
    int32_t threads;
};

inline Refusal check(const GeluGrnStatsParams& p) {
    if (p.batch < 1 || p.positions < 1 || p.channels < 1) return expected::sizes;
    if (!valid(p.dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.x && p.y && p.sumsq ? nullptr : expected::tensors;
}

}  // namespace flashjanus
