#pragma once

#include "kernel.h"

namespace flashjanus {

// y = silu(x[:, :channels]) * x[:, channels:]. Where scale is given, y in int8: see cpu/quantize.h.
struct SiluMulParams {
    const void* x;  // [rows, 2 * channels]
    void* y;        // [rows, channels]
    float* scale;   // [rows], or null
    Dtype dtype;    // of x, and of y without scale
    int32_t rows;
    int32_t channels;
    int32_t threads;
};

inline Refusal check(const SiluMulParams& p) {
    if (p.rows < 1 || p.channels < 1) return expected::sizes;
    if (p.scale && p.channels > kMaxQuantizedChannels) return expected::quantized_channels;
    if (!valid(p.dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.x && p.y ? nullptr : expected::tensors;
}

}  // namespace flashjanus
