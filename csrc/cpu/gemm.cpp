// y = x w^T + bias for many rows. bf16 is widened to float32 before it is multiplied: many CPUs without AMX multiply
// pairs of bf16 at half the rate of float32. The rows of x are widened and transposed once, those of w block by block;
// a block stays in the second-level cache while all rows of x pass. Each sum runs over the columns in order, in a lane
// of its own, so its bits depend neither on the other rows nor on the number of threads. See flow_update.cpp for what a
// file compiled per instruction set must not do.
#include "cpu/gemm.h"
#include "cpu/intrinsics.h"
#include "host/scratch.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

// A tile of y is kRows x kWidth: its sums, a row of w's block and a value of x fill the registers.
constexpr int32_t kRows = kLanes == 16 ? 8 : 4;
constexpr int32_t kParts = 3;
constexpr int32_t kWidth = kParts * kLanes;

// Lane j of m[i] and lane i of m[j] change places.
INLINE void transpose(F32 (&m)[kLanes]) {
#if defined(__AVX512F__)
    __m512d pairs[16];
    for (int i = 0; i < 8; ++i) {
        pairs[2 * i] = (__m512d)_mm512_unpacklo_ps((__m512)m[2 * i], (__m512)m[2 * i + 1]);
        pairs[2 * i + 1] = (__m512d)_mm512_unpackhi_ps((__m512)m[2 * i], (__m512)m[2 * i + 1]);
    }
    __m512 quads[16];  // i + j: column j of rows i to i + 3, and columns j + 4, j + 8 and j + 12 after it
    for (int i = 0; i < 16; i += 4) {
        quads[i] = (__m512)_mm512_unpacklo_pd(pairs[i], pairs[i + 2]);
        quads[i + 1] = (__m512)_mm512_unpackhi_pd(pairs[i], pairs[i + 2]);
        quads[i + 2] = (__m512)_mm512_unpacklo_pd(pairs[i + 1], pairs[i + 3]);
        quads[i + 3] = (__m512)_mm512_unpackhi_pd(pairs[i + 1], pairs[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {
        const __m512 even_upper = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0x88);
        const __m512 even_lower = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0x88);
        const __m512 odd_upper = _mm512_shuffle_f32x4(quads[j], quads[4 + j], 0xdd);
        const __m512 odd_lower = _mm512_shuffle_f32x4(quads[8 + j], quads[12 + j], 0xdd);
        m[j] = (F32)_mm512_shuffle_f32x4(even_upper, even_lower, 0x88);
        m[4 + j] = (F32)_mm512_shuffle_f32x4(odd_upper, odd_lower, 0x88);
        m[8 + j] = (F32)_mm512_shuffle_f32x4(even_upper, even_lower, 0xdd);
        m[12 + j] = (F32)_mm512_shuffle_f32x4(odd_upper, odd_lower, 0xdd);
    }
#else
    for (int i = 0; i < kLanes; ++i) {
        for (int j = 0; j < i; ++j) {
            const float kept = m[i][j];
            m[i][j] = m[j][i];
            m[j][i] = kept;
        }
    }
#endif
}

// Widens and transposes kCount rows of `from`, from row `first` on: column k goes to to[k * step]. The last row stands
// in for rows after the end, whose products are not stored.
template <int kCount, class T>
INLINE void place(const T* from, int32_t first, int32_t rows, int32_t columns, float* to, int32_t step) {
    for (int32_t k = 0; k < columns; k += kLanes) {
        F32 m[kLanes] = {};
        for (int32_t i = 0; i < kCount; ++i) {
            const int64_t row = first + i < rows ? first + i : rows - 1;
            m[i] = load(from + row * columns + k, columns - k);
        }
        transpose(m);
        const int32_t left = columns - k < kLanes ? columns - k : kLanes;
        for (int32_t i = 0; i < left; ++i) __builtin_memcpy(to + int64_t{k + i} * step, &m[i], kCount * sizeof(float));
    }
}

// sums[r][j] = x . w of row r and part j of a tile, over all columns.
INLINE void multiply(const float* x, const float* w, int32_t columns, F32 (&sums)[kRows][kParts]) {
    F32 totals[kRows][kParts] = {};
    for (int32_t k = 0; k < columns; ++k, x += kRows, w += kWidth) {
        F32 weights[kParts];
#pragma GCC unroll 3
        for (int j = 0; j < kParts; ++j) weights[j] = load(w + j * kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const F32 value = splat(x[r]);
#pragma GCC unroll 3
            for (int j = 0; j < kParts; ++j) totals[r][j] += value * weights[j];
        }
    }
    __builtin_memcpy(sums, totals, sizeof totals);
}

template <class T, class Y>
INLINE void finish(const GemmParams& p, int32_t row, int32_t column, const F32 (&sums)[kRows][kParts]) {
    for (int32_t r = 0; r < kRows && row + r < p.rows; ++r) {
        Y* y = static_cast<Y*>(p.y) + int64_t{row + r} * p.out + column;
        for (int32_t j = 0; j < kParts && column + j * kLanes < p.out; ++j) {
            const int32_t count = p.out - column - j * kLanes;
            F32 v = sums[r][j];
            if (p.bias) v += load(static_cast<const T*>(p.bias) + column + j * kLanes, count);
            store(y + j * kLanes, v, count);
        }
    }
}

template <class T, class Y>
void product(const GemmParams& p) {
    const int32_t panels = (p.rows + kRows - 1) / kRows, blocks = (p.out + kWidth - 1) / kWidth;
    // Where blocks are too few to share out among the threads, the rows are cut too; each part then widens w again.
    const int32_t wanted = (4 * p.threads + blocks - 1) / blocks, parts = wanted < panels ? wanted : panels;
    const int64_t panel = int64_t{p.columns} * kRows, block = int64_t{p.columns} * kWidth;
    float* const x = scratch_floats(panels * panel + p.threads * block);
    float* const w = x + panels * panel;
    int32_t members = 0;
    const Team team = team_for(p.threads, int64_t{blocks} * parts, 0.013 * p.rows * p.out * p.columns);
#pragma omp parallel num_threads(team.threads)
    {
        join_team();
        float* const own = w + __atomic_fetch_add(&members, 1, __ATOMIC_RELAXED) * block;
#pragma omp for schedule(static)
        for (int32_t i = 0; i < panels; ++i) {
            place<kRows>(static_cast<const T*>(p.x), i * kRows, p.rows, p.columns, x + i * panel, kRows);
        }
#pragma omp for schedule(dynamic) nowait
        for (int32_t item = 0; item < blocks * parts; ++item) {
            const int32_t column = item / parts * kWidth, part = item % parts;
            for (int32_t j = 0; j < kParts; ++j) {
                const int32_t first = column + j * kLanes;
                place<kLanes>(static_cast<const T*>(p.w), first, p.out, p.columns, own + j * kLanes, kWidth);
            }
            const int32_t last = static_cast<int32_t>(int64_t{panels} * (part + 1) / parts);
            for (int32_t i = static_cast<int32_t>(int64_t{panels} * part / parts); i < last; ++i) {
                F32 sums[kRows][kParts];
                multiply(x + i * panel, own, p.columns, sums);
                finish<T, Y>(p, i * kRows, column, sums);
            }
        }
    }
}

}  // namespace

void gemm(const GemmParams& p) {
    with_type(p.dtype, [&](auto x) { with_type(p.y_dtype, [&](auto y) { product<decltype(x), decltype(y)>(p); }); });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
