#pragma once

#include "kernel.h"

namespace flashjanus {

// What a row does in one evaluation: recalls what its slots hold, or keeps what the layers added in one of them.
struct StepCacheLine {
    float recall;  // not 0: y is recalled
    float slot;    // 0 or 1: keeps total - x; below 0: neither does
    float w_0;     // if it is 0, slot_0 is not read
    float w_1;
};

// y[b] = total[b] and slot[b] = total[b] - x[r]; or y[b] = x[r] + w_0 * slot_0[b] + w_1 * slot_1[b], where the line
// lines[r, min(step[r], evaluations - 1)] recalls or there is no total; r = b, or b - images for b >= images.
struct StepCacheParams {
    const void* x;               // [images, positions, channels]
    const void* total;           // [batch, positions, channels], or null
    void* slot_0;                // [batch, positions, channels]
    void* slot_1;                // [batch, positions, channels]
    const StepCacheLine* lines;  // [images, evaluations]
    const int32_t* step;         // [images]
    void* y;                     // [batch, positions, channels]
    Dtype x_dtype;               // of x, total and y
    Dtype slot_dtype;
    int32_t batch;
    int32_t images;
    int32_t positions;
    int32_t channels;
    int32_t evaluations;
    int32_t threads;
};

inline Refusal check(const StepCacheParams& p) {
    if (p.batch < 1 || p.positions < 1 || p.channels < 1 || p.evaluations < 1) return expected::sizes;
    if (p.images < 1 || p.images > p.batch || p.batch - p.images > p.images) return expected::images;
    if (!valid(p.x_dtype) || !valid(p.slot_dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.x && p.slot_0 && p.slot_1 && p.lines && p.step && p.y ? nullptr : expected::tensors;
}

}  // namespace flashjanus
