#pragma once

#include "kernel.h"

namespace flashjanus {

inline constexpr int32_t kMaxRank = 1024;
inline constexpr int32_t kMaxParts = 3;

// y[r] += scale[s] * (p(x[r]) a[s]) b[s] with s = adapter[r] - 1, in float32; rows whose s is not a slot are left
// unchanged. p is RMSNorm, silu(gate) * up if gated, or nothing. Each of `parts` reads `rank` columns of a, and writes
// `first` outputs or an equal share of the others.
struct LowRankParams {
    const void* x;           // [rows, tokens, columns], gated: [rows, tokens, 2 * columns], gates first
    const float* norm;       // [columns], or null; not with gated
    const int32_t* adapter;  // [rows]
    const int32_t* ranks;    // [slots, parts], how much of `rank` is used
    const float* scale;      // [slots, parts]
    const void* a;           // [slots, columns, parts * rank]
    const void* b;           // [slots, rank, outputs]
    void* y;                 // [rows, tokens, outputs], outputs dense
    Dtype dtype;             // of a and b
    Dtype x_dtype;
    Dtype y_dtype;
    float eps;
    int32_t gated;
    int32_t rows;
    int32_t tokens;
    int32_t columns;
    int32_t outputs;
    int32_t first;
    int32_t parts;
    int32_t rank;
    int32_t slots;
    int64_t y_row_stride;
    int64_t y_token_stride;
    int32_t threads;
};

inline Refusal check(const LowRankParams& p) {
    if (p.rows < 1 || p.tokens < 1 || p.columns < 1 || p.outputs < 1 || p.slots < 1) return expected::sizes;
    if (p.rank < 1 || p.rank > kMaxRank) return "expected rank 1 to 1024";
    if (p.parts < 1 || p.parts > kMaxParts) return "expected parts 1 to 3";
    if (p.first < 1 || p.first > p.outputs || (p.parts == 1 && p.first != p.outputs)) return expected::sizes;
    if (p.parts > 1 && (p.outputs - p.first) % (p.parts - 1)) return "expected equal parts after the first";
    if (p.gated && p.norm) return "expected no norm where gated";
    if (!valid(p.dtype) || !valid(p.x_dtype) || !valid(p.y_dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    return p.x && p.adapter && p.ranks && p.scale && p.a && p.b && p.y ? nullptr : expected::tensors;
}

}  // namespace flashjanus
