// y = act(norm(x) w^T * scale + bias) + residual for few rows, as in decoding. Reading w is the bottleneck: a piece of
// w serves up to four rows of x while it is in registers, and further groups of four while it is in the cache. A row's
// sums have the same order in any group, so its bits do not depend on the number of rows. See flow_update.cpp for what
// a file compiled per instruction set must not do.
#include "cpu/gemv.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/norm.h"
#include "cpu/parallel.h"

// w is fetched this many bytes ahead, across the ends of rows: a row is often a page, at whose end the hardware's own
// prefetch stops. Fetching several rows at once, each this far ahead, keeps more of the memory busy than fetching one.
constexpr int32_t kAhead = 16384;
constexpr int32_t kGroup = 4;            // rows of x that share a reading of w from the cache
constexpr int32_t kNormed = 4 * kGroup;  // rows whose norms a thread keeps on its stack
constexpr int32_t kBlock = 8;            // rows of w that stay in the cache from group to group

// Two registers of w, or the same places of x, in the order in which w is cheaper to load.
template <class W, class T>
INLINE void load_two(const T* from, F32& first, F32& second) {
    if constexpr (sizeof(W) == 1) {
        first = load(from);
        second = load(from + kLanes);
    } else {
        load_pairs(from, first, second);
    }
}

// totals[r][o] = x[r] . w[o]. Meanwhile the data `ahead` bytes after w[o] is fetched.
template <int kRows, int kOut, class T, class W>
INLINE void multiply(const T* x, const W* const (&w)[kOut], int32_t columns, int64_t ahead,
                     float (&totals)[kRows][kOut]) {
    F32 sums[kRows][kOut] = {}, more[kRows][kOut] = {};  // two, so that an addition need not wait for the last one
    int32_t k = 0;
    for (; k + 2 * kLanes <= columns; k += 2 * kLanes) {
        F32 even[kRows], odd[kRows];
        for (int r = 0; r < kRows; ++r) load_two<W>(x + int64_t{r} * columns + k, even[r], odd[r]);
        for (int o = 0; o < kOut; ++o) {
            __builtin_prefetch(reinterpret_cast<const char*>(w[o] + k) + ahead);
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

// Finishes output o of row r after its product.
INLINE void finish(const GemvParams& p, int32_t r, int32_t o, float total) {
    const int64_t at = int64_t{r} * p.out + o;
    if (p.residual)
        with_type(p.residual_dtype,
                  [&](auto type) { total += load(static_cast<const decltype(type)*>(p.residual) + at, 1)[0]; });
    with_type(p.y_dtype, [&](auto type) { store(static_cast<decltype(type)*>(p.y) + at, splat(total), 1); });
}

// kOut neighboring outputs of kRows rows from row `row` on, which are at x.
template <int kRows, int kOut, class T, class W>
INLINE void outputs(const GemvParams& p, const T* x, int32_t row, int32_t first, int64_t ahead) {
    const W* w[kOut];
    for (int o = 0; o < kOut; ++o) w[o] = static_cast<const W*>(p.w) + int64_t{first + o} * p.columns;
    float totals[kRows][kOut];
    multiply(x, w, p.columns, ahead, totals);
    for (int o = 0; o < kOut; ++o) {
        const float scale = p.scale ? p.scale[first + o] : 1.0f;
        const float bias = p.bias ? load(static_cast<const T*>(p.bias) + first + o, 1)[0] : 0.0f;
        for (int r = 0; r < kRows; ++r) finish(p, row + r, first + o, totals[r][o] * scale + bias);
    }
}

// silu(gate) * up for kOut neighboring outputs.
template <int kRows, int kOut, class T, class W>
INLINE void gated_outputs(const GemvParams& p, const T* x, int32_t row, int32_t first, int64_t ahead) {
    const W* w[2 * kOut];
    for (int o = 0; o < kOut; ++o) {
        w[o] = static_cast<const W*>(p.w) + int64_t{first + o} * p.columns;
        w[kOut + o] = w[o] + int64_t{p.out} * p.columns;
    }
    float totals[kRows][2 * kOut];
    multiply(x, w, p.columns, ahead, totals);
    for (int o = 0; o < kOut; ++o) {
        const float gate_scale = p.scale ? p.scale[first + o] : 1.0f;
        const float up_scale = p.scale ? p.scale[p.out + first + o] : 1.0f;
        for (int r = 0; r < kRows; ++r) {
            const float gate = totals[r][o] * gate_scale;
            finish(p, row + r, first + o, silu(splat(gate))[0] * totals[r][kOut + o] * up_scale);
        }
    }
}

// Rows of w at once: as many as leave registers for their sums.
constexpr int32_t together(int32_t rows) {
    return rows <= 2 ? 4 : 2;
}

// Outputs first .. last - 1 of kRows rows from row `row` on, which are at x. For each step of outputs, the data
// `ahead(step)` bytes after its rows of w is fetched.
template <int kRows, class T, class W, class Ahead>
INLINE void some_outputs(const GemvParams& p, const T* x, int32_t row, int32_t first, int32_t last,
                         const Ahead& ahead) {
    constexpr int kOut = together(kRows);
    const int32_t step = p.gated ? kOut / 2 : kOut;
    int32_t at = first;
    for (int32_t i = 0; at + step <= last; at += step, ++i) {
        p.gated ? gated_outputs<kRows, kOut / 2, T, W>(p, x, row, at, ahead(i))
                : outputs<kRows, kOut, T, W>(p, x, row, at, ahead(i));
    }
    for (; at < last; ++at) {
        p.gated ? gated_outputs<kRows, 1, T, W>(p, x, row, at, 0) : outputs<kRows, 1, T, W>(p, x, row, at, 0);
    }
}

// norm(x) of `rows` rows from row `row` on, in `normed`, or x itself if there is no norm. Every thread computes it for
// itself, which is cheaper than waiting for another thread.
template <class T>
INLINE const T* normed_rows(const GemvParams& p, int32_t row, int32_t rows, T* normed) {
    if (!p.norm) return static_cast<const T*>(p.x) + int64_t{row} * p.columns;
    for (int32_t r = 0; r < rows; ++r) {
        with_type(p.x_dtype, [&](auto type) {
            const auto* from = static_cast<const decltype(type)*>(p.x) + int64_t{row + r} * p.columns;
            const float squares = sum_of_squares(from, p.columns);
            scale_by_rms(from, squares, p.norm, p.eps, p.columns, normed + int64_t{r} * p.columns);
        });
    }
    return normed;
}

// Nanoseconds that a loop over all outputs takes to read w.
INLINE double reading(const GemvParams& p) {
    return 0.1 * (p.gated ? 2 : 1) * p.out * p.columns;
}

template <int kRows, class T, class W>
void rows(const GemvParams& p) {
    const int32_t step = p.gated ? together(kRows) / 2 : together(kRows);
    const int64_t items = (int64_t{p.out} + step - 1) / step;
    parallel_parts(p.threads, items, reading(p), [&](int64_t from, int64_t to) {
        T normed[kRows * kMaxNormChannels];
        const T* x = normed_rows(p, 0, kRows, normed);
        const auto last = static_cast<int32_t>(to * step < p.out ? to * step : p.out);
        some_outputs<kRows, T, W>(p, x, 0, static_cast<int32_t>(from * step), last,
                                  [](int32_t) { return int64_t{kAhead}; });
    });
}

// A block of outputs for all rows, group by group. The next block's rows of w are fetched meanwhile, a part after each
// group.
template <class T, class W>
INLINE void block(const GemvParams& p, const T* x, int32_t row, int32_t rows, int32_t first, int32_t last) {
    const int64_t bytes = int64_t{last - first} * p.columns * sizeof(W);
    const int32_t groups = (rows + kGroup - 1) / kGroup;
    for (int32_t g = 0; g < groups; ++g) {
        const auto ahead = [&](int32_t step) { return step % groups == g ? bytes : int64_t{0}; };
        const T* from = x + int64_t{g} * kGroup * p.columns;
        const int32_t at = row + g * kGroup, left = rows - g * kGroup;
        if (left >= kGroup) {
            some_outputs<kGroup, T, W>(p, from, at, first, last, ahead);
        } else if (left == 3) {
            some_outputs<3, T, W>(p, from, at, first, last, ahead);
        } else if (left == 2) {
            some_outputs<2, T, W>(p, from, at, first, last, ahead);
        } else {
            some_outputs<1, T, W>(p, from, at, first, last, ahead);
        }
    }
}

template <class T, class W>
void many_rows(const GemvParams& p) {
    const int32_t step = p.gated ? kBlock / 2 : kBlock;
    const int64_t items = (int64_t{p.out} + step - 1) / step;
    for (int32_t row = 0; row < p.rows; row += kNormed) {
        const int32_t count = p.rows - row < kNormed ? p.rows - row : kNormed;
        parallel_parts(p.threads, items, reading(p), [&](int64_t from, int64_t to) {
            T normed[kNormed * kMaxNormChannels];
            const T* x = normed_rows(p, row, count, normed);
            for (int64_t item = from; item < to; ++item) {
                const auto first = static_cast<int32_t>(item * step);
                block<T, W>(p, x, row, count, first, first + step < p.out ? first + step : p.out);
            }
        });
    }
}

template <class T, class W>
void any_rows(const GemvParams& p) {
    switch (p.rows) {
        case 1: return rows<1, T, W>(p);
        case 2: return rows<2, T, W>(p);
        case 3: return rows<3, T, W>(p);
        case 4: return rows<4, T, W>(p);
        default: return many_rows<T, W>(p);
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
