// Attention of many queries by AMX: blocks of 32 queries pass over blocks of keys with an online softmax. Keys and
// values of a head are put into tiles once and serve all of its queries. A block of keys is skipped if no query of the
// block sees any of them, which for causal rows is half of the blocks.
#include "cpu/amx/tiled_attention.h"
#include "cpu/intrinsics.h"
#include "host/scratch.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/amx/tiles.h"
#include "cpu/visible.h"

constexpr int32_t kRows = 2 * kTile;  // queries of a block
constexpr int32_t kKeys = 192;        // keys of a block: its scores stay in the first-level cache
constexpr int32_t kPair = 2 * kTile;  // keys or channels of a tile's row in bf16
constexpr float kLog2E = 1.44269504f;

// The memory of a thread for one head of one row.
struct Buffers {
    char* k;        // [keys / 16][head / 32] tiles, channels in pairs
    char* v;        // [head / 16][keys / 32] tiles, keys in pairs
    char* q;        // [2][head / 32] tiles
    char* weights;  // [2][kKeys / 32] tiles
    float* scores;  // [kRows][kKeys]
    float* sums;    // [2][head / 16] tiles, of weighted values
    uint8_t* seen;  // [keys], whether any query sees the key

    static int64_t bytes(int64_t keys, int64_t head) {
        return 2 * keys * head * 2 + kRows * (head * 6 + int64_t{kKeys} * 6) + (keys + 63) / 64 * 64;
    }
    Buffers(char* memory, int64_t keys, int64_t head)
        : k(memory),
          v(k + keys * head * 2),
          q(v + keys * head * 2),
          weights(q + kRows * head * 2),
          scores(reinterpret_cast<float*>(weights + kRows * kKeys * 2)),
          sums(scores + kRows * kKeys),
          seen(reinterpret_cast<uint8_t*>(sums + kRows * head)) {
    }
};

INLINE void transpose(__m512i (&r)[16]) {
    __m512i t[16];
    for (int i = 0; i < 8; ++i) {
        t[2 * i] = _mm512_unpacklo_epi32(r[2 * i], r[2 * i + 1]);
        t[2 * i + 1] = _mm512_unpackhi_epi32(r[2 * i], r[2 * i + 1]);
    }
    for (int i = 0; i < 16; i += 4) {
        r[i] = _mm512_unpacklo_epi64(t[i], t[i + 2]);
        r[i + 1] = _mm512_unpackhi_epi64(t[i], t[i + 2]);
        r[i + 2] = _mm512_unpacklo_epi64(t[i + 1], t[i + 3]);
        r[i + 3] = _mm512_unpackhi_epi64(t[i + 1], t[i + 3]);
    }
    for (int j = 0; j < 4; ++j) {
        t[j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0x88);
        t[4 + j] = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0x88);
        t[8 + j] = _mm512_shuffle_i32x4(r[j], r[4 + j], 0xdd);
        t[12 + j] = _mm512_shuffle_i32x4(r[8 + j], r[12 + j], 0xdd);
    }
    for (int j = 0; j < 4; ++j) {
        r[j] = _mm512_shuffle_i32x4(t[j], t[4 + j], 0x88);
        r[4 + j] = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0x88);
        r[8 + j] = _mm512_shuffle_i32x4(t[j], t[4 + j], 0xdd);
        r[12 + j] = _mm512_shuffle_i32x4(t[8 + j], t[12 + j], 0xdd);
    }
}

// 2^x for x <= 0, with a relative error of 3e-6; 2^-120 for smaller x than -120; NaN stays NaN.
INLINE F32 exp2(F32 x) {
    const __m512 bounded = _mm512_max_ps(_mm512_set1_ps(-120.0f), (__m512)x);
    const __m512 n = _mm512_roundscale_ps(bounded, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC);
    const F32 r = (F32)_mm512_sub_ps(bounded, n);
    F32 y = splat(1.33335581e-3f);
    y = y * r + 9.61812910e-3f;
    y = y * r + 5.55041087e-2f;
    y = y * r + 2.40226507e-1f;
    y = y * r + 6.93147181e-1f;
    y = y * r + 1.0f;
    return (F32)_mm512_scalef_ps((__m512)y, n);
}

// D(c, a, b) += the products of two tiles of rows at a by two panels at b, `steps` tiles each.
INLINE void multiply_2x2(const char* a, int64_t a_rows, const char* b, int64_t b_panel, int32_t steps) {
    for (int32_t k = 0; k < steps; ++k, a += kTileBytes, b += kTileBytes) {
        _tile_loadd(4, a, 64);
        _tile_loadd(6, b, 64);
        _tile_dpbf16ps(0, 4, 6);
        _tile_loadd(7, b + b_panel, 64);
        _tile_dpbf16ps(1, 4, 7);
        _tile_loadd(5, a + a_rows, 64);
        _tile_dpbf16ps(2, 5, 6);
        _tile_dpbf16ps(3, 5, 7);
    }
}

class Head {
 public:
    // Queries first to last - 1 of row b, for the heads that share key/value head g.
    Head(const TiledAttentionParams& p, int32_t b, int32_t g, int32_t first, int32_t last)
        : p_(p),
          b_(b),
          g_(g),
          first_(first),
          last_(last),
          row_(p, b),
          low_(row_.begin(first, last)),
          padded_((row_.end(first, last) - low_ + kPair - 1) / kPair * kPair) {
    }
    int64_t bytes() const {
        return Buffers::bytes(padded_, p_.head);
    }

    void run(char* memory) const {
        const Buffers at(memory, padded_, p_.head);
        row_.mark(first_, last_, low_, padded_, at.seen);
        place_keys(at);
        place_values(at);
        const int32_t group = p_.heads / p_.kv_heads;
        for (int32_t h = g_ * group; h < (g_ + 1) * group; ++h) {
            for (int32_t i = first_; i < last_; i += kRows) block(at, h, i);
        }
    }

 private:
    // 32 channels of key or value low_ + j, zeros for those that no query sees.
    INLINE __m512i row(const void* of, const Buffers& at, int32_t j, int32_t d) const {
        if (!at.seen[j]) return __m512i{};
        const int64_t from = b_ * p_.batch_stride + (low_ + j) * p_.key_stride + int64_t{g_} * p_.head + d;
        return _mm512_loadu_si512(static_cast<const bf16*>(of) + from);
    }

    void place_keys(const Buffers& at) const {
        char* to = at.k;
        for (int32_t j = 0; j < padded_; j += kTile) {
            for (int32_t d = 0; d < p_.head; d += kPair, to += kTileBytes) {
                __m512i r[kTile];
                for (int32_t i = 0; i < kTile; ++i) r[i] = row(p_.k, at, j + i, d);
                transpose(r);
                for (int32_t i = 0; i < kTile; ++i) _mm512_store_si512(to + i * 64, r[i]);
            }
        }
    }

    void place_values(const Buffers& at) const {
        const int64_t panel = int64_t{padded_} / kPair * kTileBytes;
        alignas(64) uint16_t order[2][kPair];  // of two rows: a0 b0 a1 b1 ..
        for (int32_t i = 0; i < kPair; ++i) {
            order[0][i] = static_cast<uint16_t>(i / 2 + i % 2 * kPair);
            order[1][i] = static_cast<uint16_t>(i / 2 + kTile + i % 2 * kPair);
        }
        const __m512i lower = _mm512_load_si512(order[0]), upper = _mm512_load_si512(order[1]);
        for (int32_t j = 0; j < padded_; j += 2) {
            char* to = at.v + j / kPair * kTileBytes + j % kPair / 2 * 64;
            for (int32_t d = 0; d < p_.head; d += kPair, to += 2 * panel) {
                const __m512i a = row(p_.v, at, j, d), b = row(p_.v, at, j + 1, d);
                _mm512_store_si512(to, _mm512_permutex2var_epi16(a, lower, b));
                _mm512_store_si512(to + panel, _mm512_permutex2var_epi16(a, upper, b));
            }
        }
    }

    void place_queries(const Buffers& at, int32_t h, int32_t i, int32_t count) const {
        const int64_t steps = p_.head / kPair;
        for (int32_t r = 0; r < kRows; ++r) {
            const int64_t from = ((int64_t{b_} * p_.queries + i + r) * p_.heads + h) * p_.head;
            char* to = at.q + r / kTile * steps * kTileBytes + r % kTile * 64;
            for (int32_t d = 0; d < p_.head; d += kPair, to += kTileBytes) {
                const bool there = r < count;
                _mm512_store_si512(to,
                                   there ? _mm512_loadu_si512(static_cast<const bf16*>(p_.q) + from + d) : __m512i{});
            }
        }
    }

    // Queries i .. i + 31 of head h.
    void block(const Buffers& at, int32_t h, int32_t i) const {
        const int32_t count = last_ - i < kRows ? last_ - i : kRows;
        const int32_t first = row_.begin(i, i + count), last = row_.end(i, i + count);
        place_queries(at, h, i, count);
        __builtin_memset(at.sums, 0, sizeof(float) * kRows * p_.head);
        float largest[kRows], total[kRows];
        for (int32_t r = 0; r < kRows; ++r) largest[r] = -__builtin_inff(), total[r] = 0.0f;
        for (int32_t j = (first - low_) / kPair * kPair; j < last - low_; j += kKeys) {
            const int32_t left = (last - low_ - j + kPair - 1) / kPair * kPair;
            keys(at, i, count, j, left < kKeys ? left : kKeys, largest, total);
        }
        const int64_t panels = p_.head / kTile;
        for (int32_t r = 0; r < count; ++r) {
            const float* sums = at.sums + (r / kTile * panels * kTile + r % kTile) * kTile;
            bf16* o = static_cast<bf16*>(p_.o) + ((int64_t{b_} * p_.queries + i + r) * p_.heads + h) * p_.head;
            const float share = 1.0f / total[r];
            for (int32_t d = 0; d < p_.head; d += kPair, sums += 2 * kTileSums) {
                const __m512i v = to_bf16(load(sums) * share, load(sums + kTileSums) * share);
                _mm512_storeu_si512(o + d, v);
            }
        }
    }

    // Adds keys low_ + j .. low_ + j + width - 1.
    void keys(const Buffers& at, int32_t i, int32_t count, int32_t j, int32_t width, float* largest,
              float* total) const {
        const int32_t steps = p_.head / kPair;
        const int64_t tiles = int64_t{steps} * kTileBytes;
        tiles_meet_memory();
        for (int32_t c = 0; c < width; c += kPair) {
            zero_sums();
            multiply_2x2(at.q, tiles, at.k + (j + c) / kTile * tiles, tiles, steps);
            store_sums(at.scores + c, at.scores + kTile * kKeys + c, kTile, kKeys * sizeof(float));
        }
        tiles_meet_memory();
        for (int32_t r = 0; r < count; ++r) softmax(at, i, r, j, width, largest[r], total[r]);
        tiles_meet_memory();
        const int64_t panel = int64_t{padded_} / kPair * kTileBytes, panels = p_.head / kTile;
        const char* v = at.v + j / kPair * kTileBytes;
        for (int64_t d = 0; d < panels; d += 2) {
            float* upper = at.sums + d * kTileSums;
            float* lower = upper + panels * kTileSums;
            load_sums(upper, lower, kTileSums, 64);
            multiply_2x2(at.weights, kKeys / kPair * kTileBytes, v + d * panel, panel, width / kPair);
            store_sums(upper, lower, kTileSums, 64);
        }
        tiles_meet_memory();
    }

    // The weights of query i + r on these keys, relative to its largest score so far; its sums so far are rescaled to
    // match.
    INLINE void softmax(const Buffers& at, int32_t i, int32_t r, int32_t j, int32_t width, float& largest,
                        float& total) const {
        float* scores = at.scores + r * kKeys;
        const int32_t from = low_ + j;
        if (from < row_.start || from + width > row_.stop(i + r)) {
            const __m512i lanes = _mm512_set_epi32(15, 14, 13, 12, 11, 10, 9, 8, 7, 6, 5, 4, 3, 2, 1, 0);
            const __m512i begin = _mm512_set1_epi32(row_.start), end = _mm512_set1_epi32(row_.stop(i + r));
            const __m512i slot = _mm512_set1_epi32(row_.own(i + r));
            for (int32_t c = 0; c < width; c += kLanes) {
                const __m512i key = _mm512_add_epi32(lanes, _mm512_set1_epi32(from + c));
                const __mmask16 visible = (_mm512_cmpge_epi32_mask(key, begin) & _mm512_cmplt_epi32_mask(key, end)) |
                                          _mm512_cmpeq_epi32_mask(key, slot);
                const __m512 hidden = _mm512_set1_ps(-__builtin_inff());
                store(scores + c, (F32)_mm512_mask_blend_ps(visible, hidden, (__m512)load(scores + c)));
            }
        }
        F32 most = load(scores);
        for (int32_t c = kLanes; c < width; c += kLanes) {
            const F32 s = load(scores + c);
            most = s <= most ? most : s;  // NaN wins, as in a softmax
        }
        const float scale = p_.scale * kLog2E;
        float now = _mm512_reduce_max_ps((__m512)most) * scale;
        if (_mm512_cmp_ps_mask((__m512)most, (__m512)most, _CMP_UNORD_Q)) now = __builtin_nanf("");
        if (now <= largest) now = largest;
        const float keep = now == largest ? 1.0f : largest == -__builtin_inff() ? 0.0f : exp2(splat(largest - now))[0];
        const float shift = now == -__builtin_inff() ? 0.0f : now;
        char* to = at.weights + r / kTile * (kKeys / kPair * kTileBytes) + r % kTile * 64;
        F32 sum_of{};
        for (int32_t c = 0; c < width; c += kPair, to += kTileBytes) {
            const F32 a = weight(load(scores + c), scale, shift), b = weight(load(scores + c + kLanes), scale, shift);
            sum_of += a + b;
            _mm512_store_si512(to, to_bf16(a, b));
        }
        total = total * keep + sum(sum_of);
        if (keep != 1.0f) rescale(at, r, keep);
        largest = now;
    }

    // A hidden key has weight 0.
    INLINE F32 weight(F32 score, float scale, float shift) const {
        const F32 x = score * scale - shift;
        const __mmask16 there = _mm512_cmp_ps_mask((__m512)score, _mm512_set1_ps(-__builtin_inff()), _CMP_NEQ_UQ);
        return (F32)_mm512_maskz_mov_ps(there, (__m512)exp2(x));
    }

    INLINE void rescale(const Buffers& at, int32_t r, float keep) const {
        const int64_t panels = p_.head / kTile;
        float* sums = at.sums + (r / kTile * panels * kTile + r % kTile) * kTile;
        for (int64_t d = 0; d < panels; ++d, sums += kTileSums) store(sums, load(sums) * keep);
    }

    const TiledAttentionParams& p_;
    const int32_t b_, g_, first_, last_;
    const Visible row_;
    const int32_t low_;     // the first key that any of the queries sees
    const int32_t padded_;  // keys from there on, in whole pairs of tiles
};

}  // namespace

Refusal tiled_attention(const TiledAttentionParams& p) {
    if (p.dtype != Dtype::bf16) return "expected dtype 1 (bfloat16)";
    if (p.head % kPair) return "expected heads of a multiple of 32 channels";
    // enough chunks of queries to keep all threads busy, although each chunk puts the keys into tiles again
    const int64_t heads = int64_t{p.batch} * p.kv_heads, blocks = (p.queries + kRows - 1) / kRows;
    const int64_t wanted = heads >= 4 * p.threads ? 1 : (4 * p.threads + heads - 1) / heads;
    const int64_t chunks = wanted < (blocks + 3) / 4 ? wanted : (blocks + 3) / 4;
    bool failed = false;
    const double work = 0.015 * p.batch * p.queries * p.keys * p.heads * p.head;
    const Team team = team_for(p.threads, heads * chunks, work);
#pragma omp parallel num_threads(team.threads)
    {
        join_team();
        configure_tiles();
#pragma omp for schedule(dynamic)
        for (int64_t i = 0; i < heads * chunks; ++i) {
            const int64_t chunk = chunks - 1 - i / heads;  // the longest of causal rows first
            const auto first = static_cast<int32_t>(blocks * chunk / chunks * kRows);
            const auto end = static_cast<int32_t>(blocks * (chunk + 1) / chunks * kRows);
            const auto b = static_cast<int32_t>(i % heads / p.kv_heads), g = static_cast<int32_t>(i % p.kv_heads);
            const Head head(p, b, g, first, end < p.queries ? end : p.queries);
            if (char* memory = scratch(head.bytes())) {
                head.run(memory);
            } else {
#pragma omp atomic write
                failed = true;
            }
        }
        _tile_release();
    }
    return failed ? kNoMemory : nullptr;
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
