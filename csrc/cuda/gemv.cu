#include "cpu/gemv.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace flashjanus::cuda {
namespace {

constexpr int kWarps = 4;
constexpr int kOut = 2;    // rows of w per warp, which share its loads of x
constexpr int kDepth = 4;  // packs of a row of w that a lane loads at once

// A piece of w: lane by lane, depth by depth, for both rows.
template <class W>
using Tile = Pack<W>[kDepth][kOut];

template <bool kAligned, class W>
__device__ inline void load_tile(Tile<W>& tile, const W* const (&rows)[kOut], int column, int columns) {
#pragma unroll
    for (int d = 0; d < kDepth; ++d) {
        const int at = column + d * kWarp * Pack<W>::kSize;
#pragma unroll
        for (int o = 0; o < kOut; ++o) tile[d][o] = load_pack<kAligned, true>(rows[o] + at, columns - at);
    }
}

// sums[r][o] += a pack of w times x, from `column` on. The pack is summed separately first, because short sums round
// less.
template <bool kAligned, int kRows, class X, class W>
__device__ inline void add_pack(float (&sums)[kRows][kOut], const Pack<W> (&w)[kOut], const X* x, int rows, int column,
                                int columns) {
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        const X* from = x + int64_t{min(r, rows - 1)} * columns;
        float of_pack[kOut] = {};
#pragma unroll
        for (int part = 0; part < Pack<W>::kSize; part += Pack<X>::kSize) {
            const Pack<X> values = load_pack<kAligned>(from + column + part, columns - column - part);
#pragma unroll
            for (int i = 0; i < Pack<X>::kSize; ++i) {
#pragma unroll
                for (int o = 0; o < kOut; ++o) of_pack[o] += values[i] * w[o][part + i];
            }
        }
#pragma unroll
        for (int o = 0; o < kOut; ++o) sums[r][o] += of_pack[o];
    }
}

// x / sqrt(mean(x^2) + eps) * norm, into shared memory. Every warp sums all squares, which is cheaper than waiting for
// the sums of others.
template <class X>
__device__ inline const X* normalized(const GemvParams& p) {
    X* normed = reinterpret_cast<X*>(dynamic_shared);
    for (int r = 0; r < p.rows; ++r) {
        const X* x = static_cast<const X*>(p.x) + int64_t{r} * p.columns;
        float squares = 0.0f;
#pragma unroll 8
        for (int c = threadIdx.x % kWarp; c < p.columns; c += kWarp) squares += widen(x[c]) * widen(x[c]);
        const float root = rsqrtf(sum_lanes(squares) / static_cast<float>(p.columns) + p.eps);
        for (int c = threadIdx.x; c < p.columns; c += kWarps * kWarp) {
            store(normed + r * p.columns + c, widen(x[c]) * root * p.norm[c]);
        }
    }
    __syncthreads();
    return normed;
}

__device__ inline float element(const void* from, Dtype dtype, int64_t i) {
    if (dtype == Dtype::f32) return static_cast<const float*>(from)[i];
    return widen(static_cast<const bf16*>(from)[i]);
}

// Finishes output o of row r after its product.
__device__ inline void finish(const GemvParams& p, int r, int o, float total) {
    const int64_t at = int64_t{r} * p.out + o;
    if (p.residual) total += element(p.residual, p.residual_dtype, at);
    if (p.y_dtype == Dtype::f32) return store(static_cast<float*>(p.y) + at, total);
    store(static_cast<bf16*>(p.y) + at, total);
}

// A warp computes kOut neighboring outputs of all rows, or a gated one. The first tile of w is a constant, so its load
// starts before x is ready.
template <class X, class W, int kRows, bool kAligned>
__global__ void __launch_bounds__(kWarps* kWarp) gemv_kernel(const __grid_constant__ GemvParams p) {
    constexpr int kStep = kDepth * kWarp * Pack<W>::kSize;
    const int lane = threadIdx.x % kWarp;
    const int first = (blockIdx.x * kWarps + threadIdx.x / kWarp) * (p.gated ? 1 : kOut);
    start_next();

    const auto row_of_w = [&](int o) {
        return p.gated ? min(first, p.out - 1) + o * p.out : min(first + o, p.out - 1);
    };
    const W* rows[kOut];
#pragma unroll
    for (int o = 0; o < kOut; ++o) rows[o] = static_cast<const W*>(p.w) + int64_t{row_of_w(o)} * p.columns;
    int column = lane * Pack<W>::kSize;
    Tile<W> next;
    load_tile<kAligned>(next, rows, column, p.columns);
    wait_for_inputs();
    const X* x = p.norm ? normalized<X>(p) : static_cast<const X*>(p.x);
    if (first >= p.out) return;

    float sums[kRows][kOut] = {};
    for (int done = 0; done < p.columns; done += kStep, column += kStep) {
        Tile<W> tile;
#pragma unroll
        for (int d = 0; d < kDepth; ++d) {
#pragma unroll
            for (int o = 0; o < kOut; ++o) tile[d][o] = next[d][o];
        }
        if (done + kStep < p.columns) load_tile<kAligned>(next, rows, column + kStep, p.columns);
#pragma unroll
        for (int d = 0; d < kDepth; ++d) {
            const int at = column + d * kWarp * Pack<W>::kSize;
            add_pack<kAligned>(sums, tile[d], x, p.rows, at, p.columns);
        }
    }
#pragma unroll
    for (int r = 0; r < kRows; ++r) {
        float totals[kOut];
#pragma unroll
        for (int o = 0; o < kOut; ++o) {
            totals[o] = sum_lanes(sums[r][o]);
            if (p.scale) totals[o] *= p.scale[row_of_w(o)];
            if (p.bias) totals[o] += element(p.bias, p.dtype, row_of_w(o));
        }
        if (lane != 0 || r >= p.rows) continue;
        if (p.gated) {
            finish(p, r, first, totals[0] / (1.0f + expf(-totals[0])) * totals[1]);
            continue;
        }
#pragma unroll
        for (int o = 0; o < kOut; ++o) {
            if (first + o < p.out) finish(p, r, first + o, totals[o]);
        }
    }
}

template <class X, class W>
Refusal any_rows(const GemvParams& p, void* stream) {
    const bool aligned_w = p.columns % Pack<W>::kSize == 0 && aligned(p.w, 16);
    const bool aligned_x = p.columns % Pack<X>::kSize == 0 && aligned(p.x, 16);
    const bool whole = aligned_w && aligned_x;
    auto kernel = gemv_kernel<X, W, 4, false>;
    if (whole) kernel = gemv_kernel<X, W, 4, true>;
    if (whole && p.rows == 1) kernel = gemv_kernel<X, W, 1, true>;
    const int per_block = kWarps * (p.gated ? 1 : kOut);
    const unsigned shared = p.norm ? p.rows * p.columns * sizeof(X) : 0;
    const Shape shape{(int64_t{p.out} + per_block - 1) / per_block, kWarps * kWarp, shared, 1, true};
    return launch(kernel, shape, p, stream);
}

template <class X>
Refusal any_weight(const GemvParams& p, void* stream) {
    if (p.scale) return any_rows<X, int8_t>(p, stream);
    if constexpr (sizeof(X) == sizeof(float)) {
        if (p.dtype == Dtype::f32) return any_rows<X, float>(p, stream);
    }
    return any_rows<X, bf16>(p, stream);
}

}  // namespace

Refusal gemv(const GemvParams& params, void* stream) {
    if (const Refusal refusal = check(params)) return refusal;
    if (params.rows > kMaxGemvRows) return expected::few_rows;
    if (params.x_dtype == Dtype::f32) return any_weight<float>(params, stream);
    return any_weight<bf16>(params, stream);
}

}  // namespace flashjanus::cuda
