// Products of tiles in float32: kRows rows of x by kWidth rows of w. Their sums, kWidth values of w and one of x fill
// the registers. Included inside an anonymous namespace, after vector.h.

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

// Widens and transposes kCount rows, the values of row i at row(i): column k goes to to[k * step]. A null row is zeros.
template <int kCount, class Row>
INLINE void place(const Row& row, int32_t columns, float* to, int32_t step) {
    for (int32_t k = 0; k < columns; k += kLanes) {
        F32 m[kLanes] = {};
        for (int32_t i = 0; i < kCount; ++i) {
            if (const auto* from = row(i)) m[i] = load(from + k, columns - k);
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
