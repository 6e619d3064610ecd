// Adds what low-rank adapters contribute to the rows that have one, several tokens of a row at a time: they share a
// piece of a and b while it is in registers. The order of a token's sums does not depend on the other tokens. See
// flow_update.cpp for what a file compiled per instruction set must not do.
#include "cpu/low_rank.h"

#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/norm.h"
#include "cpu/parallel.h"

constexpr int32_t kTokens = 8;
constexpr int32_t kVectors = kLanes == 16 ? 2 : 1;  // kTokens * kVectors sums stay in registers
constexpr int32_t kChunk = 512;                     // columns of p(x) at once, which stay in the L1

// The memory of a row's adapter.
struct Slot {
    const int32_t* ranks;
    const float* scale;
    const void* a;
    const void* b;
};

// p(x) of some columns of a token, in float32. inverse: 1 / root mean square.
template <class X>
INLINE void prologue(const LowRankParams& p, const X* x, float inverse, int32_t from, int32_t count, float* to) {
    for (int32_t c = 0; c < count; c += kLanes) {
        const int32_t left = count - c;
        F32 v = load(x + from + c, left);
        if (p.norm) v = v * inverse * load(p.norm + from + c, left);
        if (p.gated) v = silu(v) * load(x + p.columns + from + c, left);
        store(to + c, v, left);
    }
}

// sums[t][v] += sum over `depth` of x[t][d] * w[d][v]. Rows of x are x_stride apart, rows of w w_stride. Only `left`
// columns of the kWide registers are loaded, and the others are zeros.
template <int kRows, int kWide, class W>
INLINE void multiply(const float* x, int32_t x_stride, const W* w, int64_t w_stride, int32_t depth, int32_t left,
                     F32 (&sums)[kRows][kWide]) {
    for (int32_t d = 0; d < depth; ++d, w += w_stride) {
        F32 columns[kWide];
        for (int v = 0; v < kWide; ++v) columns[v] = load(w + v * kLanes, left - v * kLanes);
        for (int t = 0; t < kRows; ++t) {
            for (int v = 0; v < kWide; ++v) sums[t][v] += x[t * x_stride + d] * columns[v];
        }
    }
}

// Adds to low[t][q] for kWide registers of columns q, of which `left` count.
template <int kRows, int kWide, class T>
INLINE void down_some(const float* x, const T* a, int32_t width, int32_t count, int32_t left, float* low) {
    F32 sums[kRows][kWide];
    for (int t = 0; t < kRows; ++t) {
        for (int v = 0; v < kWide; ++v) sums[t][v] = load(low + t * width + v * kLanes, left - v * kLanes);
    }
    multiply(x, kChunk, a, width, count, left, sums);
    for (int t = 0; t < kRows; ++t) {
        for (int v = 0; v < kWide; ++v) store(low + t * width + v * kLanes, sums[t][v], left - v * kLanes);
    }
}

// Adds to low[t][q] the part of a chunk of columns of p(x), for the columns q of a that a part uses.
template <int kRows, class T>
INLINE void down(const LowRankParams& p, const Slot& slot, const float* x, int32_t from, int32_t count, float* low) {
    const int32_t width = p.parts * p.rank;
    for (int32_t part = 0; part < p.parts; ++part) {
        const T* a = static_cast<const T*>(slot.a) + int64_t{from} * width + part * p.rank;
        float* to = low + part * p.rank;
        int32_t q = 0;
        for (; slot.ranks[part] - q > (kVectors - 1) * kLanes; q += kVectors * kLanes) {
            down_some<kRows, kVectors>(x, a + q, width, count, slot.ranks[part] - q, to + q);
        }
        if (q < slot.ranks[part]) down_some<kRows, 1>(x, a + q, width, count, slot.ranks[part] - q, to + q);
    }
}

// y += scale * low b for kWide registers of outputs, of which `left` count, and for `tokens` tokens.
template <int kRows, int kWide, class T, class Y>
INLINE void up_some(const LowRankParams& p, const float* low, const T* b, int32_t rank, float scale, int32_t left, Y* y,
                    int32_t tokens) {
    F32 sums[kRows][kWide] = {};
    multiply(low, p.parts * p.rank, b, p.outputs, rank, left, sums);
    for (int t = 0; t < kRows && t < tokens; ++t) {
        for (int v = 0; v < kWide; ++v) {
            Y* to = y + t * p.y_token_stride + v * kLanes;
            store(to, load(to, left - v * kLanes) + scale * sums[t][v], left - v * kLanes);
        }
    }
}

template <int kRows, class T, class Y>
INLINE void up(const LowRankParams& p, const Slot& slot, const float* low, Y* y, int32_t tokens) {
    int32_t begin = 0;
    for (int32_t part = 0; part < p.parts; ++part) {
        const int32_t outputs = part == 0 ? p.first : (p.outputs - p.first) / (p.parts - 1), rank = slot.ranks[part];
        const T* b = static_cast<const T*>(slot.b) + begin;
        const float* from = low + part * p.rank;
        const float scale = slot.scale[part];
        int32_t o = 0;
        for (; rank > 0 && outputs - o > (kVectors - 1) * kLanes; o += kVectors * kLanes) {
            up_some<kRows, kVectors>(p, from, b + o, rank, scale, outputs - o, y + begin + o, tokens);
        }
        if (rank > 0 && o < outputs) up_some<kRows, 1>(p, from, b + o, rank, scale, outputs - o, y + begin + o, tokens);
        begin += outputs;
    }
}

// Up to kRows tokens of a row, from x and y on.
template <int kRows, class X, class T, class Y>
INLINE void some_tokens(const LowRankParams& p, const Slot& slot, const X* x, Y* y, int32_t tokens) {
    float low[kRows * kMaxParts * kMaxRank];
    float read[kRows * kChunk];
    float inverse[kRows] = {};
    const int32_t width = p.parts * p.rank;
    const int64_t x_stride = int64_t{p.columns} * (p.gated ? 2 : 1);
    __builtin_memset(low, 0, sizeof(float) * kRows * width);
    __builtin_memset(read, 0, sizeof read);  // tokens beyond the last are zeros
    for (int32_t t = 0; p.norm && t < tokens; ++t) {
        const float squares = sum_of_squares(x + t * x_stride, p.columns);
        inverse[t] = 1.0f / __builtin_sqrtf(squares / static_cast<float>(p.columns) + p.eps);
    }
    for (int32_t from = 0; from < p.columns; from += kChunk) {
        const int32_t count = p.columns - from < kChunk ? p.columns - from : kChunk;
        for (int32_t t = 0; t < tokens; ++t) prologue(p, x + t * x_stride, inverse[t], from, count, read + t * kChunk);
        down<kRows, T>(p, slot, read, from, count, low);
    }
    up<kRows, T>(p, slot, low, y, tokens);
}

// Whether row r has an adapter that adds something here.
INLINE bool adapted(const LowRankParams& p, int32_t r) {
    const int32_t s = p.adapter[r] - 1;
    bool any = false;
    for (int32_t part = 0; s >= 0 && s < p.slots && part < p.parts; ++part) any |= p.ranks[s * p.parts + part] > 0;
    return any;
}

template <class X, class T, class Y>
void blocks(const LowRankParams& p, int32_t count) {
    const int32_t apart = p.tokens == 1 ? 1 : kTokens, of_row = (p.tokens + apart - 1) / apart;
    const double products = double(p.tokens) * count * p.rank * (double(p.parts) * p.columns + p.outputs);
    parallel_for(p.threads, int64_t{count} * of_row, 0.03 * products, [&](int64_t item) {
        int32_t r = 0;  // the row that has the item, the nth of those with an adapter
        for (int64_t n = item / of_row; !adapted(p, r) || n-- > 0;) ++r;
        const int64_t s = p.adapter[r] - 1, first = item % of_row * apart;
        const Slot slot{p.ranks + s * p.parts, p.scale + s * p.parts,
                        static_cast<const T*>(p.a) + s * p.columns * p.parts * p.rank,
                        static_cast<const T*>(p.b) + s * p.rank * p.outputs};
        const X* x = static_cast<const X*>(p.x) + (int64_t{r} * p.tokens + first) * p.columns * (p.gated ? 2 : 1);
        Y* y = static_cast<Y*>(p.y) + r * p.y_row_stride + first * p.y_token_stride;
        const auto left = static_cast<int32_t>(p.tokens - first);
        if (left == 1) return some_tokens<1, X, T>(p, slot, x, y, 1);
        some_tokens<kTokens, X, T>(p, slot, x, y, left < kTokens ? left : kTokens);
    });
}

}  // namespace

void low_rank(const LowRankParams& p) {
    int32_t count = 0;
    for (int32_t r = 0; r < p.rows; ++r) count += adapted(p, r);
    if (count == 0) return;
    with_type(p.x_dtype, [&](auto x) {
        with_type(p.dtype, [&](auto factor) {
            with_type(p.y_dtype, [&](auto y) { blocks<decltype(x), decltype(factor), decltype(y)>(p, count); });
        });
    });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
