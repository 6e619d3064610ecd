// y = act(norm(x) w^T * scale + bias) + residual by AMX, which multiplies 16x16x32 values of bf16, or 16x16x64 of int8,
// in 16 cycles. AMX waits for its operands, so these are stored in the order in which it reads them: w when it is
// loaded, and x at the start of a call, block by block in the second-level cache. The products run while the next piece
// of w is fetched.
#include "cpu/amx/tiled_linear.h"
#include "cpu/intrinsics.h"
#include "host/scratch.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/amx/tiles.h"
#include "cpu/quantize.h"

#include "cpu/norm.h"

constexpr int64_t kBlockBytes = 3 << 18;   // of x in tiles; a second-level cache of 2 MB also holds pieces of w
constexpr int32_t kBlockPairs = 4;         // pairs of tiles of rows that share a piece of w, if x has that many
constexpr int64_t kStreamBytes = 1 << 20;  // bytes of y per thread, above which stores to y bypass the caches
constexpr int32_t kAhead = 2;              // tiles of w that are fetched ahead if few rows share them

// Rows of norm(x) in tiles, their scales if they are int8, and sums that wait for the next part of the columns.
struct Operands {
    char* tiles;
    float* scales;
    char* sums;
};

// One row of norm(x), 64 bytes into each tile from `to` on. T: bf16, or int8_t with `scale` written.
template <class T, class X>
INLINE void place_row(const TiledLinearParams& p, const X* x, char* to, float* scale) {
    constexpr int32_t kStep = 64 / sizeof(T);
    if constexpr (sizeof(T) == 2) {
        const float rms = p.norm ? 1.0f / __builtin_sqrtf(sum_of_squares(x, p.columns) / p.columns + p.eps) : 1.0f;
        const auto value = [&](int32_t c) { return p.norm ? load(x + c) * rms * load(p.norm + c) : load(x + c); };
        for (int32_t c = 0; c < p.columns; c += kStep, to += kTileBytes) {
            _mm512_store_si512(to, to_bf16(value(c), value(c + kLanes)));
        }
    } else {
        alignas(64) float y[kMaxQuantizedChannels];
        alignas(64) int8_t q[kMaxQuantizedChannels];
        norm_or_copy(x, p.norm, p.eps, p.columns, y);
        quantize(y, p.columns, q, scale);
        for (int32_t c = 0; c < p.columns; c += kStep, to += kTileBytes) {
            _mm512_store_si512(to, _mm512_load_si512(q + c));
        }
    }
}

template <class T>
INLINE void place(const TiledLinearParams& p, const Operands& operands, int32_t r) {
    const int64_t steps = int64_t{p.columns} * sizeof(T) / 64;
    char* to = operands.tiles + r / kTile * steps * kTileBytes + r % kTile * 64;
    if (r >= p.rows) {
        for (int64_t k = 0; k < steps; ++k) _mm512_store_si512(to + k * kTileBytes, __m512i{});
        return;
    }
    with_type(p.x_dtype, [&](auto type) {
        const auto* x = static_cast<const decltype(type)*>(p.x) + int64_t{r} * p.columns;
        place_row<T>(p, x, to, operands.scales + r);
    });
}

#define MULTIPLY(T, c, a, b)          \
    do {                              \
        if constexpr (sizeof(T) == 2) \
            _tile_dpbf16ps(c, a, b);  \
        else                          \
            _tile_dpbssd(c, a, b);    \
    } while (false)

// Sums of up to 32 rows and of 32 rows of w, or of 16 and 64, tile by tile.
using Sums = float[4][kTile][kTile];

INLINE void load_sums(const Sums& sums) {
    load_sums(sums[0][0], sums[2][0], kTileSums, 64);
}

INLINE void store_sums(Sums& sums) {
    store_sums(sums[0][0], sums[2][0], kTileSums, 64);
    tiles_meet_memory();
}

// Adds a[i] b[j] to the tiles of sums 2 i + j: two tiles of rows by two panels of w. meanwhile(k) is called between the
// products.
template <class T, class Meanwhile>
INLINE void multiply_2x2(const char* const (&a)[2], const char* const (&b)[2], int32_t steps,
                         const Meanwhile& meanwhile) {
    for (int32_t k = 0; k < steps; ++k) {
        const int64_t at = int64_t{k} * kTileBytes;
        meanwhile(k);
        _tile_loadd(4, a[0] + at, 64);
        _tile_loadd(6, b[0] + at, 64);
        MULTIPLY(T, 0, 4, 6);
        _tile_loadd(7, b[1] + at, 64);
        MULTIPLY(T, 1, 4, 7);
        _tile_loadd(5, a[1] + at, 64);
        MULTIPLY(T, 2, 5, 6);
        MULTIPLY(T, 3, 5, 7);
    }
}

// Adds a b[j] to the tiles of sums j: one tile of rows by four panels of w. It also fetches next[j], the tiles that are
// read after b[j].
template <class T>
INLINE void multiply_1x4(const char* a, const char* const (&b)[4], const char* const (&next)[4], int32_t steps) {
    for (int32_t k = 0; k < steps; ++k) {
        const int64_t at = int64_t{k} * kTileBytes;
        for (int j = 0; j < 4; ++j) {
            const int32_t ahead = k + kAhead;
            const char* from =
                ahead < steps ? b[j] + int64_t{ahead} * kTileBytes : next[j] + int64_t{ahead - steps} * kTileBytes;
            for (int32_t line = 0; line < kTileBytes; line += 64) __builtin_prefetch(from + line);
        }
        _tile_loadd(4, a + at, 64);
        _tile_loadd(5, b[0] + at, 64);
        MULTIPLY(T, 0, 4, 5);
        _tile_loadd(6, b[1] + at, 64);
        MULTIPLY(T, 1, 4, 6);
        _tile_loadd(7, b[2] + at, 64);
        MULTIPLY(T, 2, 4, 7);
        _tile_loadd(5, b[3] + at, 64);
        MULTIPLY(T, 3, 4, 5);
    }
}

// How a call is cut into items. An item is a block of rows, whose tiles stay in the cache, by two panels of w (if
// gated, a panel of gates and its panel of ups). If there are few rows, an item is all rows by four panels. If there
// are so many columns that only a small block would stay in the cache, the call passes over w in parts of the columns.
struct Cut {
    int32_t steps;   // tiles along the columns of x
    int32_t panels;  // of 16 columns of y
    bool few;        // rows of one tile
    int32_t wide;    // panels of y in an item
    int32_t across;  // items of a block
    int32_t pairs;   // of tiles of rows
    int32_t block;   // pairs in a block
    int32_t blocks;
    int32_t parts;
    int32_t held;  // sums of one thread that wait for the next part

    Cut(const TiledLinearParams& p, int32_t tile_columns) {
        steps = p.columns / tile_columns;
        panels = p.out / kTile;
        few = p.rows <= kTile;
        wide = (few ? 4 : 2) / (p.act == Activation::gated_silu ? 2 : 1);
        across = (panels + wide - 1) / wide;
        pairs = (p.rows + 2 * kTile - 1) / (2 * kTile);
        const auto fitting = static_cast<int32_t>(kBlockBytes / (2 * kTileBytes));  // pairs of one step
        const int32_t wanted = pairs < kBlockPairs ? pairs : kBlockPairs;
        parts = few ? 1 : (steps * wanted + fitting - 1) / fitting;
        const int32_t most = fitting / ((steps + parts - 1) / parts);
        blocks = few ? 1 : (pairs + most - 1) / most;
        block = (pairs + blocks - 1) / blocks;  // of nearly equal size
        const int64_t share = (items() + p.threads - 1) / p.threads;
        held = parts == 1 ? 0 : block * static_cast<int32_t>(share < across ? share : across);
    }
    int32_t padded_rows() const {
        return few ? kTile : pairs * 2 * kTile;
    }
    int64_t items() const {
        return int64_t{blocks} * across;
    }
};

// One thread's work. The sums of one product are finished while the tiles multiply for the next one.
template <class T>
class Worker {
 public:
    Worker(const TiledLinearParams& p, const Operands& operands, const Cut& cut, int32_t thread)
        : p_(p),
          operands_(operands),
          cut_(cut),
          held_(reinterpret_cast<Sums*>(operands.sums) + int64_t{thread} * cut.held),
          stream_(p.act != Activation::gated_silu && cut.panels % 2 == 0 && aligned(p.y) &&
                  int64_t{p.rows} * p.out * width(p.y_dtype) > p.threads * kStreamBytes) {
    }

    // Items first to last - 1.
    void run(int64_t first, int64_t last) {
        while (first < last) {
            const auto block = static_cast<int32_t>(first / cut_.across);
            const int64_t end = int64_t{block + 1} * cut_.across;
            const auto from = static_cast<int32_t>(first % cut_.across);
            const auto count = static_cast<int32_t>((end < last ? end : last) - first);
            for (int32_t part = 0; part < cut_.parts; ++part) {
                for (int32_t i = 0; i < count; ++i) {
                    // meanwhile the next item is fetched: after the last item, the first one of the next part
                    const int32_t next = i + 1 < count ? i + 1 : 0, then = next ? part : (part + 1) % cut_.parts;
                    cut_.few ? few(from + i, from + next) : many(block, part, from, i, next, then);
                }
            }
            first += count;
        }
        for (int32_t r = 0; r < count_; ++r) finish_row(r);
    }

 private:
    static int64_t width(Dtype dtype) {
        return dtype == Dtype::f32 ? 4 : 2;
    }
    static bool aligned(const void* pointer) {
        return reinterpret_cast<uintptr_t>(pointer) % 64 == 0;
    }
    bool gated() const {
        return p_.act == Activation::gated_silu;
    }
    // Panel i of w, or the last one of its half.
    const char* panel(int32_t i, bool ups = false) const {
        const int32_t bounded = i < cut_.panels ? i : cut_.panels - 1;
        return static_cast<const char*>(p_.w) + int64_t{bounded + (ups ? cut_.panels : 0)} * cut_.steps * kTileBytes;
    }

    void few(int32_t item, int32_t next) {
        const char *b[4], *then[4];
        for (int32_t j = 0; j < 4; ++j) {
            b[j] = panel(item * cut_.wide + j % cut_.wide, j >= cut_.wide);
            then[j] = panel(next * cut_.wide + j % cut_.wide, j >= cut_.wide);
        }
        alignas(64) Sums sums;
        zero_sums();
        multiply_1x4<T>(operands_.tiles, b, then, cut_.steps);
        store_sums(sums);
        const int32_t first = item * cut_.wide;
        for (int32_t j = 0; j < cut_.wide && first + j < cut_.panels; ++j) {
            for (int32_t r = 0; r < p_.rows; ++r) finish(r, first + j, sums[j][r], sums[(j + 2) % 4][r]);
        }
    }

    // Where tiles of part `part` begin.
    int32_t begin(int32_t part) const {
        return static_cast<int32_t>(int64_t{cut_.steps} * part / cut_.parts);
    }

    // Computes item from + i in a part of the columns, and fetches item from + next in part `then`.
    void many(int32_t block, int32_t part, int32_t from, int32_t i, int32_t next, int32_t then) {
        const int32_t left = (from + i) * cut_.wide, next_left = (from + next) * cut_.wide, right = gated() ? 0 : 1;
        const int64_t at = int64_t{begin(part)} * kTileBytes, next_at = int64_t{begin(then)} * kTileBytes;
        const char* b[2] = {panel(left) + at, panel(left + right, gated()) + at};
        const char* fetched[2] = {panel(next_left) + next_at, panel(next_left + right, gated()) + next_at};
        const int32_t steps = begin(part + 1) - begin(part);
        const bool ends = part + 1 == cut_.parts;
        const int32_t first = block * cut_.block;
        const int32_t last = first + cut_.block < cut_.pairs ? first + cut_.block : cut_.pairs;
        // In each step: lines of the next piece that are fetched, and rows of the previous sums that are finished.
        const int32_t lines = last > first ? (kTile + last - first - 1) / (last - first) : 0;
        const int32_t rows = (2 * kTile + steps - 1) / steps;
        for (int32_t pair = first; pair < last; ++pair) {
            const char* a0 = operands_.tiles + int64_t{pair} * 2 * cut_.steps * kTileBytes + at;
            const char* a[2] = {a0, a0 + int64_t{cut_.steps} * kTileBytes};
            const int32_t row = pair * 2 * kTile, count = p_.rows - row < 2 * kTile ? p_.rows - row : 2 * kTile;
            const int64_t done = int64_t{pair - first} * steps * lines;
            Sums& held = held_[i * cut_.block + pair - first];
            part ? load_sums(held) : zero_sums();
            multiply_2x2<T>(a, b, steps, [&](int32_t k) {
                const int64_t line = done + int64_t{k} * lines;
                for (int32_t l = 0; l < lines; ++l) {
                    __builtin_prefetch(fetched[0] + (line + l) * 64, 0, 2);
                    __builtin_prefetch(fetched[1] + (line + l) * 64, 0, 2);
                }
                for (int32_t r = k * rows; r < (k + 1) * rows && r < 2 * kTile; ++r) {
                    if (r < count_) finish_row(r);
                    if (ends && r < count) fetch_row(row + r, left);
                }
            });
            count_ = 0;
            if (!ends) {
                store_sums(held);
                continue;
            }
            done_ = &sums_[other_];
            store_sums(sums_[other_]);
            row_ = row;
            count_ = count;
            left_ = left;
            other_ = 1 - other_;
        }
    }

    // Fetches what finish_row() will need of row r.
    INLINE void fetch_row(int32_t r, int32_t panel) const {
        const int64_t at = int64_t{r} * p_.out + panel * kTile;
        if (p_.residual) {
            const char* from = static_cast<const char*>(p_.residual) + at * width(p_.residual_dtype);
            __builtin_prefetch(from, 0, 3);
            if (p_.residual_dtype == Dtype::f32) __builtin_prefetch(from + 64, 0, 3);
        }
        if (!stream_) {
            const char* to = static_cast<const char*>(p_.y) + at * width(p_.y_dtype);
            __builtin_prefetch(to, 1, 3);
            if (p_.y_dtype == Dtype::f32) __builtin_prefetch(to + 64, 1, 3);
        }
    }

    // Finishes row r of the sums that wait.
    INLINE void finish_row(int32_t r) const {
        const int32_t i = r / kTile * 2, at = r % kTile;
        const Sums& sums = *done_;
        finish(row_ + r, left_, sums[i][at], sums[i + 1][at]);
        if (!gated() && left_ + 1 < cut_.panels) finish(row_ + r, left_ + 1, sums[i + 1][at], nullptr);
    }

    // Row r of 16 columns of x w^T, in float32.
    INLINE F32 total(int32_t r, int32_t panel, const float* sums) const {
        F32 v = load(sums);
        if constexpr (sizeof(T) == 1) {
            v = __builtin_convertvector((I32)v, F32) * operands_.scales[r] * load(p_.scale + panel * kTile);
        }
        if (p_.bias) {
            with_type(p_.bias_dtype,
                      [&](auto type) { v += load(static_cast<const decltype(type)*>(p_.bias) + panel * kTile); });
        }
        return v;
    }

    // 16 columns of row r of y from the sums of their panel and, gated, of its ups.
    INLINE void finish(int32_t r, int32_t panel, const float* sums, const float* ups) const {
        F32 v = total(r, panel, sums);
        if (gated()) v = silu(v) * total(r, cut_.panels + panel, ups);
        if (p_.act == Activation::gelu) v = gelu(v);
        const int64_t at = int64_t{r} * p_.out + panel * kTile;
        if (p_.residual) {
            with_type(p_.residual_dtype,
                      [&](auto type) { v += load(static_cast<const decltype(type)*>(p_.residual) + at); });
        }
        if (p_.y_dtype == Dtype::bf16) {
            const __m256i half = (__m256i)_mm512_cvtneps_pbh((__m512)v);
            auto* to = reinterpret_cast<__m256i*>(static_cast<bf16*>(p_.y) + at);
            stream_ ? _mm256_stream_si256(to, half) : _mm256_storeu_si256(to, half);
        } else {
            float* to = static_cast<float*>(p_.y) + at;
            stream_ ? _mm512_stream_ps(to, (__m512)v) : _mm512_storeu_ps(to, (__m512)v);
        }
    }

    const TiledLinearParams& p_;
    const Operands& operands_;
    const Cut& cut_;
    Sums* const held_;
    const bool stream_;
    alignas(64) Sums sums_[2];
    int32_t other_ = 0;
    // Sums that wait to be finished: of count_ rows from row_ on, of panels left_ and the next.
    const Sums* done_ = nullptr;
    int32_t row_ = 0;
    int32_t count_ = 0;
    int32_t left_ = 0;
};

template <class T>
Refusal multiply(const TiledLinearParams& p) {
    const Cut cut(p, 64 / sizeof(T));
    const int32_t rows = cut.padded_rows();
    const int64_t tile_bytes = int64_t{rows} * p.columns * sizeof(T);
    const int64_t scale_bytes = (rows * int64_t{sizeof(float)} + 63) / 64 * 64;
    char* memory = scratch(tile_bytes + scale_bytes + int64_t{cut.held} * p.threads * sizeof(Sums));
    if (!memory) return kNoMemory;
    char* scales = memory + tile_bytes;
    const Operands operands{memory, reinterpret_cast<float*>(scales), scales + scale_bytes};
    const double each = 0.05 + 0.002 * p.rows;  // nanoseconds per weight, for reading it and for its products
    const double work = each * (p.act == Activation::gated_silu ? 2 : 1) * p.out * p.columns;
    const Team team = team_for(p.threads, cut.items(), work);
#pragma omp parallel num_threads(team.threads)
    {
        join_team();
#pragma omp for schedule(static)
        for (int32_t r = 0; r < rows; ++r) place<T>(p, operands, r);
        tiles_meet_memory();
        configure_tiles();
#pragma omp for schedule(static) nowait
        for (int32_t thread = 0; thread < p.threads; ++thread) {
            Worker<T> worker(p, operands, cut, thread);
            worker.run(cut.items() * thread / p.threads, cut.items() * (thread + 1) / p.threads);
        }
        _tile_release();
        _mm_sfence();
    }
    return nullptr;
}

}  // namespace

Refusal tiled_linear(const TiledLinearParams& p) {
    return p.scale ? multiply<int8_t>(p) : multiply<bf16>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
