// y = act(norm(x) w^T * scale + bias) + residual for up to four rows. Bound by the reading of w: every row of x is used
// while a piece of w is in registers. See flow_update.cpp for what a file compiled per instruction set must not do.
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/norm.h"
#include "cpu/parallel.h"

// Fetched so many bytes before it is needed, across the ends of rows: a row is often a page, at whose end the
// hardware's own prefetch stops. Several rows at once, fetched that far ahead, keep more of the memory busy than one.
constexpr int32_t kAhead = 16384;

// Two registers of w and the same places of x, in the order that is cheaper for w.
template <class W, class T>
INLINE void load_two(const T* from, F32& first, F32& second) {
    if constexpr (sizeof(W) == 1) {
        first = load(from);
        second = load(from + kLanes);
    } else {
        load_pairs(from, first, second);
    }
}

// totals[r][o] = x[r] . w[o]
template <int kRows, int kOut, class T, class W>
INLINE void multiply(const T* x, const W* const (&w)[kOut], int32_t columns, float (&totals)[kRows][kOut]) {
    F32 sums[kRows][kOut] = {}, more[kRows][kOut] = {};  // two, so that no sum waits for itself
    int32_t k = 0;
    for (; k + 2 * kLanes <= columns; k += 2 * kLanes) {
        F32 even[kRows], odd[kRows];
        for (int r = 0; r < kRows; ++r) load_two<W>(x + int64_t{r} * columns + k, even[r], odd[r]);
        for (int o = 0; o < kOut; ++o) {
            __builtin_prefetch(reinterpret_cast<const char*>(w[o] + k) + kAhead);
            F32 first, second;
            load_two<W>(w[o] + k, first, second);
            for (int r = 0; r < kRows; ++r) sums[r][o] += even[r] * first;
            for (int r = 0; r < kRows; ++r) more[r][o] += odd[r] * second;
        }
    }
    for (; k < columns; k += kLanes) {
        for (int o = 0; o < kOut; ++o) {
            const F32 weights = load(w[o] + k, columns - k);
            for (int r = 0; r < kRows; ++r) sums[r][o] += load(x + int64_t{r} * columns + k, columns - k) * weights;
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int o = 0; o < kOut; ++o) totals[r][o] = sum(sums[r][o] + more[r][o]);
    }
}

// What stands behind the product of output o of row r.
INLINE void finish(const GemvParams& p, int32_t r, int32_t o, float total) {
    const int64_t at = int64_t{r} * p.out + o;
    if (p.residual)
        with_type(p.residual_dtype,
                  [&](auto type) { total += load(static_cast<const decltype(type)*>(p.residual) + at, 1)[0]; });
    with_type(p.y_dtype, [&](auto type) { store(static_cast<decltype(type)*>(p.y) + at, splat(total), 1); });
}

// kOut neighbouring outputs of kRows rows.
template <int kRows, int kOut, class T, class W>
INLINE void outputs(const GemvParams& p, const T* x, int32_t first) {
    const W* w[kOut];
    for (int o = 0; o < kOut; ++o) w[o] = static_cast<const W*>(p.w) + int64_t{first + o} * p.columns;
    float totals[kRows][kOut];
    multiply(x, w, p.columns, totals);
    for (int o = 0; o < kOut; ++o) {
        const float scale = p.scale ? p.scale[first + o] : 1.0f;
        const float bias = p.bias ? load(static_cast<const T*>(p.bias) + first + o, 1)[0] : 0.0f;
        for (int r = 0; r < kRows; ++r) finish(p, r, first + o, totals[r][o] * scale + bias);
    }
}

// silu(gate) * up for kOut neighbouring outputs.
template <int kRows, int kOut, class T, class W>
INLINE void gated_outputs(const GemvParams& p, const T* x, int32_t first) {
    const W* w[2 * kOut];
    for (int o = 0; o < kOut; ++o) {
        w[o] = static_cast<const W*>(p.w) + int64_t{first + o} * p.columns;
        w[kOut + o] = w[o] + int64_t{p.out} * p.columns;
    }
    float totals[kRows][2 * kOut];
    multiply(x, w, p.columns, totals);
    for (int o = 0; o < kOut; ++o) {
        const float gate_scale = p.scale ? p.scale[first + o] : 1.0f;
        const float up_scale = p.scale ? p.scale[p.out + first + o] : 1.0f;
        for (int r = 0; r < kRows; ++r) {
            const float gate = totals[r][o] * gate_scale;
            finish(p, r, first + o, silu(splat(gate))[0] * totals[r][kOut + o] * up_scale);
        }
    }
}

template <int kRows, class T, class W>
void rows(const GemvParams& p) {
    constexpr int kOut = kRows <= 2 ? 4 : 2;  // rows of w at once: as many as leave sums in registers
    const int32_t step = p.gated ? kOut / 2 : kOut;
    const double work = 0.1 * (p.gated ? 2 : 1) * p.out * p.columns;  // for the reading of w
    const int64_t items = (int64_t{p.out} + step - 1) / step;
    parallel_parts(p.threads, items, work, [&](int64_t from, int64_t to) {
        T normed[kRows * kMaxNormChannels];  // by every thread for itself: cheaper than to wait for another
        const T* x = p.norm ? normed : static_cast<const T*>(p.x);
        for (int r = 0; p.norm && r < kRows; ++r) {
            with_type(p.x_dtype, [&](auto type) {
                const auto* from = static_cast<const decltype(type)*>(p.x) + int64_t{r} * p.columns;
                const float squares = sum_of_squares(from, p.columns);
                scale_by_rms(from, squares, p.norm, p.eps, p.columns, normed + r * p.columns);
            });
        }
        for (int64_t item = from; item < to; ++item) {
            const auto first = static_cast<int32_t>(item * step);
            if (first + step <= p.out) {
                p.gated ? gated_outputs<kRows, kOut / 2, T, W>(p, x, first) : outputs<kRows, kOut, T, W>(p, x, first);
            } else {
                for (int32_t o = first; o < p.out; ++o) {
                    p.gated ? gated_outputs<kRows, 1, T, W>(p, x, o) : outputs<kRows, 1, T, W>(p, x, o);
                }
            }
        }
    });
}

template <class T, class W>
void any_rows(const GemvParams& p) {
    switch (p.rows) {
        case 1: return rows<1, T, W>(p);
        case 2: return rows<2, T, W>(p);
        case 3: return rows<3, T, W>(p);
        default: return rows<4, T, W>(p);
    }
}

}  // namespace

void gemv(const GemvParams& p) {
    with_type(p.dtype, [&](auto type) {
        using T = decltype(type);
        if (p.scale) return any_rows<T, int8_t>(p);
        any_rows<T, T>(p);
    });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
