#pragma once

#include "kernel.h"

namespace flashjanus {

// token = a draw from softmax(logits / temperature) after repetition penalty, top-k and top-p, or the argmax at
// temperature 0; seen[token] = 1, step += 1. Each row uses its uniform number of this step, or its last one.
struct SampleTokenParams {
    const void* logits;        // [rows, vocab]
    const float* temperature;  // [rows]
    const int32_t* top_k;      // [rows], 0 for all
    const float* top_p;        // [rows], 1 for all
    const float* penalty;      // [rows], of the logits of tokens that were seen
    const float* uniforms;     // [rows, steps], in [0, 1)
    uint8_t* seen;             // [rows, vocab]
    int32_t* token;            // [rows]
    int32_t* step;             // [rows], advanced
    Dtype dtype;
    int32_t rows;
    int32_t vocab;
    int32_t steps;
    int32_t threads;
};

inline Refusal check(const SampleTokenParams& p) {
    if (p.rows < 1 || p.vocab < 1 || p.steps < 1) return expected::sizes;
    if (!valid(p.dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    const bool settings = p.temperature && p.top_k && p.top_p && p.penalty && p.uniforms;
    return settings && p.logits && p.seen && p.token && p.step ? nullptr : expected::tensors;
}

}  // namespace flashjanus
