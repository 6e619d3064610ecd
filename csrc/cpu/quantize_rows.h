#pragma once

#include "kernel.h"

namespace flashjanus {

// x in int8: see cpu/quantize.h.
struct QuantizeRowsParams {
    const void* x;  // [rows, channels]
    void* q;        // [rows, channels] int8
    float* scale;   // [rows]
    Dtype dtype;    // of x
    int32_t rows;
    int32_t channels;
    int32_t threads;
};

inline Refusal check(const QuantizeRowsParams& p) {
    if (p.rows < 1 || p.channels < 1) return expected::sizes;
    if (p.channels > kMaxQuantizedChannels) return expected::quantized_channels;
    if (!valid(p.dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.x && p.q && p.scale ? nullptr : expected::tensors;
}

}  // namespace flashjanus
