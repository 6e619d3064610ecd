// y = act(norm(x) w^T) + residual for up to four rows, with w in 4 bits. Reading w is the bottleneck, so every row of x
// uses a piece of w while it is in registers. x86 multiplies unsigned by signed bytes. The unsigned bytes are w as q +
// 8, so 8 times the sum of x is subtracted again for each group of columns.
#include "cpu/int4_linear.h"

#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/norm.h"
#include "cpu/quantize.h"

constexpr int32_t kPanel = 16;                            // outputs
constexpr int32_t kParts = kPanel / kLanes;               // registers with a lane for each output of a panel
constexpr int32_t kGroupBytes = kPanel * kInt4Group / 2;  // of w
constexpr int32_t kMaxGroups = kMaxQuantizedChannels / kInt4Group;
constexpr int32_t kPanels = 4;    // panels side by side: more streams keep more of the memory busy
constexpr int32_t kAhead = 1024;  // bytes of w that are fetched ahead, across the ends of panels

// Sums of products of w and x over a group, for the output of each lane: `add` takes four columns of w, a byte each,
// and of x. Two neighboring sums are kept in 16 bits: all of a group come to at most 16 * 15 * 127, which is below
// 2^15.
#if defined(__AVX512F__)
using Bytes = __m512i;

INLINE Bytes half(const uint8_t* w, int32_t shift) {
    return _mm512_and_si512(_mm512_srli_epi16(_mm512_loadu_si512(w), shift), _mm512_set1_epi8(0x0f));
}

INLINE Bytes add(Bytes sums, Bytes w, int32_t x) {
    return _mm512_add_epi16(sums, _mm512_maddubs_epi16(w, _mm512_set1_epi32(x)));
}

INLINE F32 total(Bytes sums, int32_t offset) {
    const __m512i pairs = _mm512_madd_epi16(sums, _mm512_set1_epi16(1));
    return (F32)_mm512_cvtepi32_ps(_mm512_add_epi32(pairs, _mm512_set1_epi32(offset)));
}
#elif defined(__AVX2__)
using Bytes = __m256i;

INLINE Bytes half(const uint8_t* w, int32_t shift) {
    const __m256i bytes = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(w));
    return _mm256_and_si256(_mm256_srli_epi16(bytes, shift), _mm256_set1_epi8(0x0f));
}

INLINE Bytes add(Bytes sums, Bytes w, int32_t x) {
    return _mm256_add_epi16(sums, _mm256_maddubs_epi16(w, _mm256_set1_epi32(x)));
}

INLINE F32 total(Bytes sums, int32_t offset) {
    const __m256i pairs = _mm256_madd_epi16(sums, _mm256_set1_epi16(1));
    return (F32)_mm256_cvtepi32_ps(_mm256_add_epi32(pairs, _mm256_set1_epi32(offset)));
}
#else
using Bytes = I32;

INLINE Bytes half(const uint8_t* w, int32_t shift) {
    Bytes bytes;
    __builtin_memcpy(&bytes, w, sizeof bytes);
    return bytes >> shift & 0x0f0f0f0f;
}

INLINE Bytes add(Bytes sums, Bytes w, int32_t x) {
    for (int32_t bit = 0; bit < 32; bit += 8) sums += (w >> bit & 0x0f) * static_cast<int8_t>(x >> bit);
    return sums;
}

INLINE F32 total(Bytes sums, int32_t offset) {
    return __builtin_convertvector(sums + offset, F32);
}
#endif

// A row of norm(x), quantized by groups.
struct Row {
    alignas(64) int8_t q[kMaxQuantizedChannels];
    float scale[kMaxGroups];
    int32_t offset[kMaxGroups];  // -8 times the sum of a group of q
};

INLINE void place(const Int4LinearParams& p, int32_t r, Row& row) {
    alignas(64) float y[kMaxQuantizedChannels];
    with_type(p.x_dtype, [&](auto type) {
        const auto* x = static_cast<const decltype(type)*>(p.x) + int64_t{r} * p.columns;
        norm_or_copy(x, p.norm, p.eps, p.columns, y);
    });
    for (int32_t g = 0; g < p.columns / kInt4Group; ++g) {
        int8_t* q = row.q + g * kInt4Group;
        quantize(y + g * kInt4Group, kInt4Group, q, row.scale + g);
        int32_t total = 0;
        for (int32_t c = 0; c < kInt4Group; ++c) total += q[c];
        row.offset[g] = -8 * total;
    }
}

INLINE int32_t four(const int8_t* q) {
    int32_t bytes;
    __builtin_memcpy(&bytes, q, sizeof bytes);
    return bytes;
}

// sums[r][j][k] = x[r] . w of part k of the outputs of panels[j].
template <int kRows>
INLINE void multiply(const Int4LinearParams& p, const Row* x, const int32_t (&panels)[kPanels],
                     F32 (&sums)[kRows][kPanels][kParts]) {
    const int32_t groups = p.columns / kInt4Group;
    const uint8_t* w[kPanels];
    const bf16* scale[kPanels];
    for (int j = 0; j < kPanels; ++j) {
        w[j] = p.w + int64_t{panels[j]} * groups * kGroupBytes;
        scale[j] = p.scale + int64_t{panels[j]} * groups * kPanel;
    }
    F32 totals[kRows][kPanels][kParts] = {};
    for (int32_t g = 0; g < groups; ++g) {
        for (int j = 0; j < kPanels; ++j) {
            const uint8_t* from = w[j] + int64_t{g} * kGroupBytes;
            for (int32_t line = 0; line < kGroupBytes; line += 64) __builtin_prefetch(from + kAhead + line);
            if (g % 2 == 0) __builtin_prefetch(reinterpret_cast<const char*>(scale[j] + g * kPanel) + kAhead / 8);
            for (int k = 0; k < kParts; ++k) {
                Bytes dots[kRows] = {};
                for (int i = 0; i < 4; ++i) {
                    const uint8_t* bytes = from + i * 64 + k * sizeof(Bytes);
                    const Bytes first = half(bytes, 0), second = half(bytes, 4);
                    for (int r = 0; r < kRows; ++r) {
                        const int8_t* q = x[r].q + g * kInt4Group + i * 8;
                        dots[r] = add(add(dots[r], first, four(q)), second, four(q + 4));
                    }
                }
                const F32 steps = load(scale[j] + g * kPanel + k * kLanes);
                for (int r = 0; r < kRows; ++r) {
                    totals[r][j][k] += total(dots[r], x[r].offset[g]) * (steps * x[r].scale[g]);
                }
            }
        }
    }
    __builtin_memcpy(sums, totals, sizeof totals);
}

// kLanes columns of row r of y.
INLINE void finish(const Int4LinearParams& p, int32_t r, int32_t column, F32 v) {
    const int64_t at = int64_t{r} * p.out + column;
    if (p.residual) {
        with_type(p.residual_dtype, [&](auto type) { v += load(static_cast<const decltype(type)*>(p.residual) + at); });
    }
    with_type(p.y_dtype, [&](auto type) { store(static_cast<decltype(type)*>(p.y) + at, v); });
}

// The outputs of an item: those of kPanels panels or, if gated, of half as many panels and their ups.
template <int kRows>
INLINE void outputs(const Int4LinearParams& p, const Row* x, int32_t item) {
    const int32_t count = p.out / kPanel, wide = p.gated ? kPanels / 2 : kPanels, left = item * wide;
    int32_t panels[kPanels];  // filled up with the last one
    for (int32_t j = 0; j < kPanels; ++j) {
        const int32_t at = left + j % wide;
        panels[j] = (at < count ? at : count - 1) + (j < wide ? 0 : count);
    }
    F32 sums[kRows][kPanels][kParts];
    multiply(p, x, panels, sums);
    for (int32_t r = 0; r < kRows; ++r) {
        for (int32_t j = 0; j < wide && left + j < count; ++j) {
            for (int32_t k = 0; k < kParts; ++k) {
                const F32 v = sums[r][j][k];
                finish(p, r, (left + j) * kPanel + k * kLanes, p.gated ? silu(v) * sums[r][wide + j][k] : v);
            }
        }
    }
}

template <int kRows>
void rows(const Int4LinearParams& p) {
    const int32_t wide = kPanel * (p.gated ? kPanels / 2 : kPanels), items = (p.out + wide - 1) / wide;
    Row x[kRows];
    const double work = 0.04 * (p.gated ? 2 : 1) * p.out * p.columns;  // for reading w
    const Team team = team_for(p.threads, items, work);
#pragma omp parallel num_threads(team.threads)
    {
        join_team();
#pragma omp for schedule(static)
        for (int32_t r = 0; r < kRows; ++r) place(p, r, x[r]);
#pragma omp for schedule(static)
        for (int32_t item = 0; item < items; ++item) outputs<kRows>(p, x, item);
    }
}

}  // namespace

void int4_linear(const Int4LinearParams& p) {
    switch (p.rows) {
        case 1: rows<1>(p); break;
        case 2: rows<2>(p); break;
        case 3: rows<3>(p); break;
        default: rows<kMaxGemvRows>(p);
    }
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
