// y = x w^T * scale + bias for up to four rows: a matrix-vector product, bound by the reading of w.
#pragma once

#include "check.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace flashjanus::cuda {

constexpr int kGemvWarps = 4;
constexpr int kGemvOut = 2;    // neighbouring outputs of a warp, which share its reading of x
constexpr int kGemvDepth = 4;  // packs of a row of w that a lane has under way at once

__device__ inline float scale_of(const GemvParams&, int) {
    return 1.0f;
}

__device__ inline float scale_of(const GemvInt8Params& p, int o) {
    return p.scale[o];
}

// A piece of w: lane by lane, depth by depth, for both outputs.
template <class W>
using GemvTile = Pack<W>[kGemvDepth][kGemvOut];

template <bool kAligned, class W>
__device__ inline void load_tile(GemvTile<W>& tile, const W* const (&rows)[kGemvOut], int column, int columns) {
#pragma unroll
    for (int d = 0; d < kGemvDepth; ++d) {
        const int at = column + d * kWarp * Pack<W>::kSize;
#pragma unroll
        for (int o = 0; o < kGemvOut; ++o) tile[d][o] = load_pack<kAligned, true>(rows[o] + at, columns - at);
    }
}

// sums[r][o] += a pack of w times x, from `column` on. Summed for itself first: short sums round less.
template <bool kAligned, int kRows, class X, class W>
__device__ inline void add_pack(float (&sums)[kRows][kGemvOut], const Pack<W> (&w)[kGemvOut], const X* x, int rows,
                                int column, int columns) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const X* from = x + int64_t{min(r, rows - 1)} * columns;
        float of_pack[kGemvOut] = {};
#pragma unroll
        for (int part = 0; part < Pack<W>::kSize; part += Pack<X>::kSize) {
            const Pack<X> values = load_pack<kAligned>(from + column + part, columns - column - part);
#pragma unroll
            for (int i = 0; i < Pack<X>::kSize; ++i) {
#pragma unroll
                for (int o = 0; o < kGemvOut; ++o) of_pack[o] += values[i] * w[o][part + i];
            }
        }
#pragma unroll
        for (int o = 0; o < kGemvOut; ++o) sums[r][o] += of_pack[o];
    }
}

// A warp makes kGemvOut outputs of all rows. The first tile of w, a constant, is under way before x is there.
template <class X, class W, int kRows, bool kAligned, class Params>
__global__ void __launch_bounds__(kGemvWarps* kWarp) gemv_kernel(const __grid_constant__ Params p) {
    constexpr int kStep = kGemvDepth * kWarp * Pack<W>::kSize;
    const int lane = threadIdx.x % kWarp;
    const int first = (blockIdx.x * kGemvWarps + threadIdx.x / kWarp) * kGemvOut;
    start_next();
    if (first >= p.out) return;

    const W* rows[kGemvOut];
    for (int o = 0; o < kGemvOut; ++o) {
        rows[o] = static_cast<const W*>(p.w) + int64_t{min(first + o, p.out - 1)} * p.columns;
    }
    int column = lane * Pack<W>::kSize;
    GemvTile<W> next;
    load_tile<kAligned>(next, rows, column, p.columns);
    wait_for_inputs();

    float sums[kRows][kGemvOut] = {};
    for (int done = 0; done < p.columns; done += kStep, column += kStep) {
        GemvTile<W> tile;
#pragma unroll
        for (int d = 0; d < kGemvDepth; ++d) {
#pragma unroll
            for (int o = 0; o < kGemvOut; ++o) tile[d][o] = next[d][o];
        }
        if (done + kStep < p.columns) load_tile<kAligned>(next, rows, column + kStep, p.columns);
#pragma unroll
        for (int d = 0; d < kGemvDepth; ++d) {
            const int at = column + d * kWarp * Pack<W>::kSize;
            add_pack<kAligned>(sums, tile[d], static_cast<const X*>(p.x), p.rows, at, p.columns);
        }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
#pragma unroll
        for (int o = 0; o < kGemvOut; ++o) {
            const float total = sum_lanes(sums[r][o]);
            if (lane != 0 || r >= p.rows || first + o >= p.out) continue;
            const float bias = p.bias ? widen(static_cast<const X*>(p.bias)[first + o]) : 0.0f;
            store(static_cast<X*>(p.y) + int64_t{r} * p.out + first + o, total * scale_of(p, first + o) + bias);
        }
    }
}

template <class X, class W, class Params>
Status launch_gemv(const Params& p, void* stream) {
    const bool aligned_w = p.columns % Pack<W>::kSize == 0 && aligned(p.w, 16);
    const bool whole = aligned_w && p.columns % Pack<X>::kSize == 0 && aligned(p.x, 16);
    auto kernel = gemv_kernel<X, W, 4, false, Params>;
    if (whole) kernel = gemv_kernel<X, W, 4, true, Params>;
    if (whole && p.rows == 2) kernel = gemv_kernel<X, W, 2, true, Params>;
    if (whole && p.rows == 1) kernel = gemv_kernel<X, W, 1, true, Params>;
    constexpr int kOutputs = kGemvWarps * kGemvOut;
    const Shape shape{(int64_t{p.out} + kOutputs - 1) / kOutputs, kGemvWarps * kWarp, 0, 1, true};
    return launch(kernel, shape, p, stream);
}

}  // namespace flashjanus::cuda
