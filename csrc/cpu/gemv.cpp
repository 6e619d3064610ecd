// y = x w^T + bias for up to four rows. Bound by the reading of w: every row of x is used while a piece of w is in
// registers. See cfg_euler.cpp for what a file compiled per instruction set must not do.
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

// Fetched so many bytes before it is needed, across the ends of rows: a row is often a page, at whose end the
// hardware's own prefetch stops.
constexpr int32_t kAhead = 4096;

// kOut neighbouring outputs of kRows rows.
template <int kRows, int kOut, class T>
INLINE void outputs(const GemvParams& p, int32_t first) {
    const T* x = static_cast<const T*>(p.x);
    const T* w = static_cast<const T*>(p.w) + int64_t{first} * p.columns;
    const T* bias = static_cast<const T*>(p.bias);
    F32 sums[kRows][kOut] = {}, more[kRows][kOut] = {};  // two, so that no sum waits for itself
    int32_t k = 0;
    for (; k + 2 * kLanes <= p.columns; k += 2 * kLanes) {
        F32 even[kRows], odd[kRows];
        for (int r = 0; r < kRows; ++r) load_pairs(x + int64_t{r} * p.columns + k, even[r], odd[r]);
        for (int o = 0; o < kOut; ++o) {
            const T* from = w + int64_t{o} * p.columns + k;
            __builtin_prefetch(reinterpret_cast<const char*>(from) + kAhead);
            F32 first, second;
            load_pairs(from, first, second);
            for (int r = 0; r < kRows; ++r) sums[r][o] += even[r] * first;
            for (int r = 0; r < kRows; ++r) more[r][o] += odd[r] * second;
        }
    }
    for (; k < p.columns; k += kLanes) {
        const int32_t count = p.columns - k < kLanes ? p.columns - k : kLanes;
        for (int o = 0; o < kOut; ++o) {
            const F32 weights = load(w + int64_t{o} * p.columns + k, count);
            for (int r = 0; r < kRows; ++r) sums[r][o] += load(x + int64_t{r} * p.columns + k, count) * weights;
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int o = 0; o < kOut; ++o) {
            float total = sum(sums[r][o] + more[r][o]);
            if (bias) total += sum(load(bias + first + o, 1));
            store(static_cast<T*>(p.y) + int64_t{r} * p.out + first + o, splat(total), 1);
        }
    }
}

template <int kRows, class T>
void rows(const GemvParams& p) {
    constexpr int kOut = 2;  // few streams through memory, and sums that fit the registers
    const int32_t blocks = p.out / kOut;
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int32_t block = 0; block < blocks; ++block) outputs<kRows, kOut, T>(p, block * kOut);
    for (int32_t o = blocks * kOut; o < p.out; ++o) outputs<kRows, 1, T>(p, o);
}

template <class T>
void any_rows(const GemvParams& p) {
    switch (p.rows) {
        case 1: return rows<1, T>(p);
        case 2: return rows<2, T>(p);
        case 3: return rows<3, T>(p);
        default: return rows<4, T>(p);
    }
}

}  // namespace

void gemv(const GemvParams& p) {
    if (p.dtype == Dtype::f32) return any_rows<float>(p);
    return any_rows<bf16>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
