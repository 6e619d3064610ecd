// y = (x w^T) * scale + bias for up to four rows and int8 weights, widened in registers. Bound by the reading of w, as
// gemv.cpp is. See cfg_euler.cpp for what a file compiled per instruction set must not do.
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

constexpr int32_t kAhead = 4096;  // bytes, see gemv.cpp

INLINE F32 widen(const int8_t* from) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return (F32)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return (F32)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#else
    F32 v;
    for (int32_t i = 0; i < kLanes; ++i) v[i] = from[i];
    return v;
#endif
}

INLINE F32 widen(const int8_t* from, int32_t count) {
    if (count >= kLanes) return widen(from);
    int8_t lanes[kLanes] = {};
    __builtin_memcpy(lanes, from, count);
    return widen(lanes);
}

// kOut neighbouring outputs of kRows rows.
template <int kRows, int kOut, class T>
INLINE void outputs(const GemvInt8Params& p, int32_t first) {
    const T* x = static_cast<const T*>(p.x);
    const int8_t* w = p.w + int64_t{first} * p.columns;
    F32 sums[kRows][kOut] = {}, more[kRows][kOut] = {};  // two, so that no sum waits for itself
    int32_t k = 0;
    for (; k + 2 * kLanes <= p.columns; k += 2 * kLanes) {
        F32 low[kRows], high[kRows];
        for (int r = 0; r < kRows; ++r) {
            low[r] = load(x + int64_t{r} * p.columns + k);
            high[r] = load(x + int64_t{r} * p.columns + k + kLanes);
        }
        for (int o = 0; o < kOut; ++o) {
            const int8_t* from = w + int64_t{o} * p.columns + k;
            __builtin_prefetch(from + kAhead);
            const F32 first_weights = widen(from), second_weights = widen(from + kLanes);
            for (int r = 0; r < kRows; ++r) sums[r][o] += low[r] * first_weights;
            for (int r = 0; r < kRows; ++r) more[r][o] += high[r] * second_weights;
        }
    }
    for (; k < p.columns; k += kLanes) {
        const int32_t count = p.columns - k < kLanes ? p.columns - k : kLanes;
        for (int o = 0; o < kOut; ++o) {
            const F32 weights = widen(w + int64_t{o} * p.columns + k, count);
            for (int r = 0; r < kRows; ++r) sums[r][o] += load(x + int64_t{r} * p.columns + k, count) * weights;
        }
    }
    for (int r = 0; r < kRows; ++r) {
        for (int o = 0; o < kOut; ++o) {
            float total = sum(sums[r][o] + more[r][o]) * p.scale[first + o];
            if (p.bias) total += load(static_cast<const T*>(p.bias) + first + o, 1)[0];
            store(static_cast<T*>(p.y) + int64_t{r} * p.out + first + o, splat(total), 1);
        }
    }
}

template <int kRows, class T>
void rows(const GemvInt8Params& p) {
    constexpr int kOut = 2;  // few streams through memory, and sums that fit the registers
    const int32_t blocks = p.out / kOut;
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int32_t block = 0; block < blocks; ++block) outputs<kRows, kOut, T>(p, block * kOut);
    for (int32_t o = blocks * kOut; o < p.out; ++o) outputs<kRows, 1, T>(p, o);
}

template <class T>
void any_rows(const GemvInt8Params& p) {
    switch (p.rows) {
        case 1: return rows<1, T>(p);
        case 2: return rows<2, T>(p);
        case 3: return rows<3, T>(p);
        default: return rows<4, T>(p);
    }
}

}  // namespace

void gemv_int8(const GemvInt8Params& p) {
    if (p.dtype == Dtype::f32) return any_rows<float>(p);
    return any_rows<bf16>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
