// Attention of many queries of a row, in float32. A head's keys are widened and transposed once, and its values
// widened; groups of queries then pass over all of them: scores, softmax, weighted sum. Every sum of a query is its own
// and begins at the first key that its row sees, so its bits depend neither on other rows nor on the number of threads.
// See flow_update.cpp for what a file compiled per instruction set must not do.
#include "cpu/attention.h"
#include "cpu/intrinsics.h"
#include "host/scratch.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/products.h"
#include "cpu/visible.h"

constexpr int32_t kBlocks = 4;  // of kRows queries, which share what the first-level cache holds of keys and values
constexpr int32_t kGroup = kBlocks * kRows;
constexpr int32_t kWide = 2 * kLanes;          // channels of a strip of values
constexpr int32_t kTileSize = kRows * kWidth;  // scores of a block and of a panel of keys
constexpr float kHidden = -__builtin_inff();

struct Sizes {
    int64_t keys;  // of whole panels
    int64_t wide;  // channels of whole strips
    int64_t head;

    Sizes(int32_t keys, int32_t head)
        : keys((keys + kWidth - 1) / kWidth * kWidth), wide((head + kWide - 1) / kWide * kWide), head(head) {
    }
    // Of the buffers below, in whole cache lines.
    int64_t floats() const {
        return (keys * (head + wide) + kGroup * (2 * wide + keys) + keys / 4 + 64) / 16 * 16;
    }
};

// One thread's memory for one head of one row.
struct Buffers {
    float* k;       // [panel][head][kWidth]
    float* v;       // [strip][keys][kWide]
    float* q;       // [block][head][kRows]
    float* sums;    // [block][strip][kRows][kWide]
    float* scores;  // [block][panel][kRows][kWidth], then weights
    uint8_t* seen;  // [keys]

    Buffers(float* memory, const Sizes& sizes)
        : k(memory),
          v(k + sizes.keys * sizes.head),
          q(v + sizes.keys * sizes.wide),
          sums(q + kGroup * sizes.wide),
          scores(sums + kGroup * sizes.wide),
          seen(reinterpret_cast<uint8_t*>(scores + kGroup * sizes.keys)) {
    }
};

// sums[r] += weights[r][j] * v[j] for the keys j of a panel.
INLINE void add(const float* weights, const float* v, float* sums) {
    F32 totals[kRows][2];
    __builtin_memcpy(totals, sums, sizeof totals);
    for (int32_t j = 0; j < kWidth; ++j, ++weights, v += kWide) {
        const F32 left = load(v), right = load(v + kLanes);
#pragma GCC unroll 8
        for (int r = 0; r < kRows; ++r) {
            const F32 weight = splat(weights[r * kWidth]);
            totals[r][0] += weight * left;
            totals[r][1] += weight * right;
        }
    }
    __builtin_memcpy(sums, totals, sizeof totals);
}

template <class T>
class Head {
 public:
    // For the query heads that share key/value head g of row b.
    Head(const AttentionParams& p, int32_t b, int32_t g, float* memory)
        : p_(p),
          b_(b),
          g_(g),
          row_(p, b),
          low_(row_.begin(0, p.queries)),
          sizes_(row_.end(0, p.queries) - low_, p.head),
          at_(memory, sizes_) {
    }

    void run(int32_t first, int32_t last) const {
        row_.mark(0, p_.queries, low_, static_cast<int32_t>(sizes_.keys), at_.seen);
        const int32_t panels = panels_to(row_.end(first, last)), group = p_.heads / p_.kv_heads;
        for (int32_t i = 0; i < panels; ++i) place_panel(i * kWidth);
        for (int32_t h = g_ * group; h < (g_ + 1) * group; ++h) {
            for (int32_t i = first; i < last; i += kGroup) {
                attend(h, i, last - i < kGroup ? last : i + kGroup);
            }
        }
    }

 private:
    int32_t panels_to(int32_t end) const {
        return (end - low_ + kWidth - 1) / kWidth;
    }
    // Key or value low_ + j, or null if no query sees it.
    INLINE const T* key(const void* of, int32_t j) const {
        const int64_t from = b_ * p_.batch_stride + (low_ + j) * p_.key_stride + int64_t{g_} * p_.head;
        return at_.seen[j] ? static_cast<const T*>(of) + from : nullptr;
    }
    int64_t query(int32_t h, int32_t i) const {
        return ((int64_t{b_} * p_.queries + i) * p_.heads + h) * p_.head;
    }

    void place_panel(int32_t j) const {
        for (int32_t part = 0; part < kWidth; part += kLanes) {
            const auto row = [&](int32_t i) { return key(p_.k, j + part + i); };
            place<kLanes>(row, p_.head, at_.k + j * sizes_.head + part, kWidth);
        }
        for (int32_t i = j; i < j + kWidth; ++i) {
            const T* from = key(p_.v, i);
            for (int32_t d = 0; d < sizes_.wide; d += kLanes) {
                float* to = at_.v + (d / kWide * sizes_.keys + i) * kWide + d % kWide;
                store(to, from && d < p_.head ? load(from + d, p_.head - d) : F32{});
            }
        }
    }

    // Queries first to last - 1 of head h, at most kGroup.
    void attend(int32_t h, int32_t first, int32_t last) const {
        const int32_t blocks = (last - first + kRows - 1) / kRows, panels = panels_to(row_.end(first, last));
        const int64_t block = sizes_.keys * kRows;
        for (int32_t i = 0; i < blocks; ++i) {
            const auto row = [&](int32_t r) {
                const int32_t at = first + i * kRows + r;
                return at < last ? static_cast<const T*>(p_.q) + query(h, at) : nullptr;
            };
            place<kRows>(row, p_.head, at_.q + i * kRows * sizes_.wide, kRows);
        }
        for (int32_t panel = 0; panel < panels; ++panel) {
            for (int32_t i = 0; i < blocks; ++i) {
                F32 sums[kRows][kParts];
                multiply(at_.q + i * kRows * sizes_.wide, at_.k + panel * kWidth * sizes_.head, p_.head, sums);
                __builtin_memcpy(at_.scores + i * block + panel * kTileSize, sums, sizeof sums);
            }
        }
        float shares[kGroup];
        for (int32_t r = 0; r < last - first; ++r) {
            shares[r] = 1.0f / softmax(first + r, at_.scores + r / kRows * block + r % kRows * kWidth, panels);
        }
        __builtin_memset(at_.sums, 0, sizeof(float) * blocks * kRows * sizes_.wide);
        for (int64_t d = 0; d < sizes_.wide; d += kWide) {
            for (int32_t panel = 0; panel < panels; ++panel) {
                const float* v = at_.v + d * sizes_.keys + panel * kWidth * kWide;
                for (int32_t i = 0; i < blocks; ++i) {
                    add(at_.scores + i * block + panel * kTileSize, v, at_.sums + (i * sizes_.wide + d) * kRows);
                }
            }
        }
        for (int32_t r = 0; r < last - first; ++r) {
            T* o = static_cast<T*>(p_.o) + query(h, first + r);
            for (int32_t d = 0; d < p_.head; d += kLanes) {
                const int64_t strip = r / kRows * sizes_.wide + d / kWide * kWide;
                const F32 v = load(at_.sums + strip * kRows + r % kRows * kWide + d % kWide);
                store(o + d, v * shares[r], p_.head - d);
            }
        }
    }

    // Turns query i's scores into weights and gives their sum.
    INLINE float softmax(int32_t i, float* scores, int32_t panels) const {
        I32 lanes;
        for (int32_t c = 0; c < kLanes; ++c) lanes[c] = c;
        F32 most = splat(kHidden);
        for (int32_t panel = 0; panel < panels; ++panel) {
            const int32_t from = low_ + panel * kWidth;
            const bool all = from >= row_.start && from + kWidth <= row_.stop(i);
            for (int32_t c = 0; c < kWidth; c += kLanes) {
                float* at = scores + panel * kTileSize + c;
                F32 s = load(at) * p_.scale;
                if (!all) {
                    const I32 key = lanes + (from + c);
                    const I32 there = ((key >= row_.start) & (key < row_.stop(i))) | (key == row_.own(i));
                    s = there ? s : splat(kHidden);
                }
                store(at, s);
                most = most < s ? s : most;
            }
        }
        float largest = kHidden;
        for (int32_t c = 0; c < kLanes; ++c) {
            if (largest < most[c]) largest = most[c];
        }
        F32 total{};
        for (int32_t panel = 0; panel < panels; ++panel) {
            for (int32_t c = 0; c < kWidth; c += kLanes) {
                float* at = scores + panel * kTileSize + c;
                const F32 s = load(at), weights = exp(s - largest);
                const F32 kept = s == kHidden ? F32{} : weights;
                store(at, kept);
                total += kept;
            }
        }
        return sum(total);
    }

    const AttentionParams& p_;
    const int32_t b_, g_;
    const Visible row_;
    const int32_t low_;
    const Sizes sizes_;
    const Buffers at_;
};

template <class T>
void all_heads(const AttentionParams& p) {
    int32_t keys = 0;
    for (int32_t b = 0; b < p.batch; ++b) {
        const Visible row(p, b);
        const int32_t count = row.end(0, p.queries) - row.begin(0, p.queries);
        keys = count > keys ? count : keys;
    }
    // enough chunks of queries to keep all threads busy, although each chunk places the keys again
    const int64_t heads = int64_t{p.batch} * p.kv_heads, groups = (p.queries + kGroup - 1) / kGroup;
    const int64_t wanted = heads >= 4 * p.threads ? 1 : (4 * p.threads + heads - 1) / heads;
    const int64_t chunks = wanted < groups ? wanted : groups;
    const int64_t floats = Sizes(keys, p.head).floats();
    float* const memory = scratch_floats(p.threads * floats);
    int32_t members = 0;
    const Team team = team_for(p.threads, heads * chunks, 0.026 * p.batch * p.queries * keys * p.heads * p.head);
#pragma omp parallel num_threads(team.threads)
    {
        join_team();
        float* const own = memory + __atomic_fetch_add(&members, 1, __ATOMIC_RELAXED) * floats;
#pragma omp for schedule(dynamic) nowait
        for (int64_t i = 0; i < heads * chunks; ++i) {
            const int64_t chunk = chunks - 1 - i / heads;  // the longest of causal rows first
            const auto first = static_cast<int32_t>(groups * chunk / chunks * kGroup);
            const auto last = static_cast<int32_t>(groups * (chunk + 1) / chunks * kGroup);
            const auto b = static_cast<int32_t>(i % heads / p.kv_heads), g = static_cast<int32_t>(i % p.kv_heads);
            Head<T>(p, b, g, own).run(first, last < p.queries ? last : p.queries);
        }
    }
}

}  // namespace

void attention(const AttentionParams& p) {
    with_type(p.dtype, [&](auto type) { all_heads<decltype(type)>(p); });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
