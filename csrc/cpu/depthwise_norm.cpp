// Depthwise 7x7 convolution and RMSNorm over channels, NHWC, in one pass over x. See flow_update.cpp for what a file
// compiled per instruction set must not do.
#include "cpu/depthwise_norm.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/parallel.h"

constexpr int32_t kTaps = 7;
constexpr int32_t kPadding = 3;

// Outputs that are computed at once: as many rows and columns of vectors as fit into the registers.
#if defined(__AVX512F__)
constexpr int32_t kTall = 2, kWide = 8;
#else
constexpr int32_t kTall = 1, kWide = 8;
#endif

// A tile's outputs before the norm. Trap: rows a power of two apart would compete for the same places of the L1 cache.
struct Tile {
    float values[kTall][kWide][kMaxNormChannels + kLanes];
    F32 squares[kTall][kWide];
};

// Not inline, because it would be inlined fifty times.
template <class T>
__attribute__((noinline)) F32 fetch_part(const T* from, int32_t count) {
    return load(from, count);
}

template <bool kWhole, class T>
INLINE F32 fetch(const T* from, int32_t count) {
    return kWhole ? load(from) : fetch_part(from, count);
}

// Adds the part of one row of x to output rows kFirst .. kLast of a tile; `weight` is the row of taps for output row 0.
template <int32_t kFirst, int32_t kLast, bool kWhole, class X, class W>
INLINE void add_row(const DepthwiseNormParams& p, const X* x, const W* weight, int32_t left, int32_t count,
                    F32 (&sums)[kTall][kWide]) {
    F32 taps[kTall][kTaps];
#pragma GCC unroll 2
    for (int32_t t = kFirst; t <= kLast; ++t) {
#pragma GCC unroll 7
        for (int32_t k = 0; k < kTaps; ++k) {
            taps[t][k] = fetch<kWhole>(weight + int64_t{k - t * kTaps} * p.channels, count);
        }
    }
#pragma GCC unroll 16
    for (int32_t i = 0; i < kWide + kTaps - 1; ++i) {
        const int32_t column = left + i - kPadding;
        if (column < 0 || column >= p.width) continue;
        const F32 v = fetch<kWhole>(x + int64_t{column} * p.channels, count);
#pragma GCC unroll 2
        for (int32_t t = kFirst; t <= kLast; ++t) {
#pragma GCC unroll 8
            for (int32_t o = 0; o < kWide; ++o) {
                if (i - o >= 0 && i - o < kTaps) sums[t][o] += taps[t][i - o] * v;
            }
        }
    }
}

// Channels c .. c + count - 1, at most a vector of them, of the tile at (top, left).
template <bool kWhole, class X, class W>
INLINE void convolve(const DepthwiseNormParams& p, const X* x, int32_t top, int32_t left, int32_t c, Tile& tile) {
    const int32_t count = p.channels - c;
    F32 sums[kTall][kWide];
    const F32 bias = p.bias ? fetch<kWhole>(static_cast<const W*>(p.bias) + c, count) : F32{};
#pragma GCC unroll 2
    for (int32_t t = 0; t < kTall; ++t) {
#pragma GCC unroll 8
        for (int32_t o = 0; o < kWide; ++o) sums[t][o] = bias;
    }
    for (int32_t r = 0; r < kTaps + kTall - 1; ++r) {
        const int32_t row = top + r - kPadding;
        if (row < 0 || row >= p.height) continue;
        const X* from = x + int64_t{row} * p.width * p.channels + c;
        const W* weight = static_cast<const W*>(p.weight) + int64_t{r} * kTaps * p.channels + c;
        if (r < kTall - 1) {
            add_row<0, 0, kWhole>(p, from, weight, left, count, sums);
        } else if (r < kTaps) {
            add_row<0, kTall - 1, kWhole>(p, from, weight, left, count, sums);
        } else {
            add_row<kTall - 1, kTall - 1, kWhole>(p, from, weight, left, count, sums);
        }
    }
#pragma GCC unroll 2
    for (int32_t t = 0; t < kTall; ++t) {
#pragma GCC unroll 8
        for (int32_t o = 0; o < kWide; ++o) {
            store(tile.values[t][o] + c, sums[t][o]);
            tile.squares[t][o] += sums[t][o] * sums[t][o];
        }
    }
}

template <class Y>
INLINE void normalize(const DepthwiseNormParams& p, const float* values, F32 squares, Y* y) {
    const float scale = 1.0f / __builtin_sqrtf(sum(squares) / static_cast<float>(p.channels) + p.eps);
    for (int32_t c = 0; c < p.channels; c += kLanes) {
        store(y + c, load(values + c) * scale * load(p.norm + c, p.channels - c), p.channels - c);
    }
}

template <class X, class W>
void tile_at(const DepthwiseNormParams& p, int32_t b, int32_t top, int32_t left) {
    Tile tile;
    for (auto& row : tile.squares) {
        for (F32& squares : row) squares = F32{};
    }
    const X* x = static_cast<const X*>(p.x) + int64_t{b} * p.height * p.width * p.channels;
    int32_t c = 0;
    for (; c + kLanes <= p.channels; c += kLanes) convolve<true, X, W>(p, x, top, left, c, tile);
    if (c < p.channels) convolve<false, X, W>(p, x, top, left, c, tile);
    for (int32_t t = 0; t < kTall && top + t < p.height; ++t) {
        for (int32_t o = 0; o < kWide && left + o < p.width; ++o) {
            const int64_t at = ((int64_t{b} * p.height + top + t) * p.width + left + o) * p.channels;
            if (p.y_dtype == Dtype::f32) {
                normalize(p, tile.values[t][o], tile.squares[t][o], static_cast<float*>(p.y) + at);
            } else {
                normalize(p, tile.values[t][o], tile.squares[t][o], static_cast<bf16*>(p.y) + at);
            }
        }
    }
}

template <class X, class W>
void tiles(const DepthwiseNormParams& p) {
    const int32_t down = (p.height + kTall - 1) / kTall, across = (p.width + kWide - 1) / kWide;
    const int64_t count = int64_t{p.batch} * down * across;
    const double work = 2.5 * p.batch * p.height * p.width * p.channels;
    parallel_for(p.threads, count, work, [&](int64_t i) {
        const int32_t row = static_cast<int32_t>(i / across);
        tile_at<X, W>(p, row / down, row % down * kTall, static_cast<int32_t>(i % across) * kWide);
    });
}

}  // namespace

void depthwise_norm(const DepthwiseNormParams& p) {
    with_type(p.x_dtype, [&](auto x) {
        with_type(p.weight_dtype, [&](auto weight) { tiles<decltype(x), decltype(weight)>(p); });
    });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
