// y = x w^T * scale + bias for many rows. bf16 and int8 are widened to float32 before they are multiplied: many CPUs
// without AMX multiply pairs of bf16 at half the rate of float32, and those without AVX-512 far slower. The rows of x
// are widened and transposed once, those of w block by block; a block stays in the second-level cache while all rows of
// x pass. Each sum runs over the columns in order, in a lane of its own, so its bits depend neither on the other rows
// nor on the number of threads. See flow_update.cpp for what a file compiled per instruction set must not do.
#include "cpu/gemm.h"
#include "cpu/intrinsics.h"
#include "host/scratch.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/products.h"

// Rows from `first` on, and null after the end.
template <class T>
INLINE auto rows_of(const void* from, int32_t first, int32_t rows, int32_t columns) {
    return [=](int32_t i) {
        return first + i < rows ? static_cast<const T*>(from) + int64_t{first + i} * columns : nullptr;
    };
}

template <class T, class Y>
INLINE void finish(const GemmParams& p, int32_t row, int32_t column, const F32 (&sums)[kRows][kParts]) {
    for (int32_t r = 0; r < kRows && row + r < p.rows; ++r) {
        Y* y = static_cast<Y*>(p.y) + int64_t{row + r} * p.out + column;
        for (int32_t j = 0; j < kParts && column + j * kLanes < p.out; ++j) {
            const int32_t count = p.out - column - j * kLanes;
            F32 v = sums[r][j];
            if (p.scale) v *= load(p.scale + column + j * kLanes, count);
            if (p.bias) v += load(static_cast<const T*>(p.bias) + column + j * kLanes, count);
            store(y + j * kLanes, v, count);
        }
    }
}

template <class T, class W, class Y>
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
            place<kRows>(rows_of<T>(p.x, i * kRows, p.rows, p.columns), p.columns, x + i * panel, kRows);
        }
#pragma omp for schedule(dynamic) nowait
        for (int32_t item = 0; item < blocks * parts; ++item) {
            const int32_t column = item / parts * kWidth, part = item % parts;
            for (int32_t j = 0; j < kParts; ++j) {
                const auto rows = rows_of<W>(p.w, column + j * kLanes, p.out, p.columns);
                place<kLanes>(rows, p.columns, own + j * kLanes, kWidth);
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
    with_type(p.dtype, [&](auto x) {
        with_type(p.y_dtype, [&](auto y) {
            using X = decltype(x);
            p.scale ? product<X, int8_t, decltype(y)>(p) : product<X, X, decltype(y)>(p);
        });
    });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
