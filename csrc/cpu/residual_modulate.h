#pragma once

#include "kernel.h"

namespace flashjanus {

// o[b] = (x[b] + y[b]) * (1 + scale) + shift, where scale | shift = table[r, min(step[r], steps - 1)] and r = b, or
// b - images for b >= images.
struct ResidualModulateParams {
    const void* y;        // [batch, positions, channels]
    const void* x;        // [batch, positions, channels]
    const float* table;   // [images, steps, 2 * channels]
    const int32_t* step;  // [images]
    void* o;              // [batch, positions, channels]
    Dtype y_dtype;
    Dtype x_dtype;
    Dtype o_dtype;
    int32_t batch;
    int32_t images;
    int32_t positions;
    int32_t channels;
    int32_t steps;
    int64_t image_stride;  // of the table
    int64_t step_stride;
    int32_t threads;
};

inline Refusal check(const ResidualModulateParams& p) {
    if (p.batch < 1 || p.positions < 1 || p.channels < 1 || p.steps < 1) return expected::sizes;
    if (p.images < 1 || p.images > p.batch || p.batch - p.images > p.images) return expected::images;
    if (!valid(p.y_dtype) || !valid(p.x_dtype) || !valid(p.o_dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.y && p.x && p.table && p.step && p.o ? nullptr : expected::tensors;
}

}  // namespace flashjanus
