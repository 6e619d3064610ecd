#include "cpu/sample_token.h"
#include "cuda/device.h"
#include "cuda/launch.h"

namespace flashjanus::cuda {
namespace {

constexpr int kWarps = kWarp;  // one lane reads the result of each
constexpr int kThreads = kWarps * kWarp;
constexpr int kUnroll = 4;           // tokens that a thread loads at once
constexpr unsigned kMaxCluster = 8;  // the largest size that every chip with clusters supports
constexpr int kDigit = 11;           // bits of a place that a pass over the row decides
constexpr int kBins = 1 << kDigit;
constexpr int kGroups = kBins / kWarp;

// A 64-bit sum in two halves: in shared memory, the hardware adds 32 bits at once and would loop over 64.
struct Bin {
    uint32_t low, high;

    __device__ void add(uint64_t x) {
        const uint32_t lower = static_cast<uint32_t>(x);
        const bool carry = atomicAdd(&low, lower) > ~lower;
        const uint32_t upper = static_cast<uint32_t>(x >> 32) + carry;
        if (upper) atomicAdd(&high, upper);
    }
    __device__ uint64_t sum() const {
        return uint64_t{high} << 32 | low;
    }
};

// The place at which a sum over the tokens reaches its goal, and the sum before that place.
struct Found {
    uint32_t place;
    uint64_t before;
};

// What a block shares with the others of its cluster, between one cluster_sync() and the next.
struct Exchange {
    Bin bins[kBins];
    Bin groups[kGroups];
    uint64_t of_warp[kWarps];
};

struct Shared {
    Exchange exchanges[2];  // in turn: others may still read the last one when a block fills the next
    Found found;
};

__device__ inline Shared& shared() {
    return *reinterpret_cast<Shared*>(dynamic_shared);
}

__device__ inline Exchange& next_exchange(int& turn) {
    turn ^= 1;
    return shared().exchanges[turn];
}

// Orders values from the largest down: 0 and -0 share a place, as equal values do, and NaN has the first.
__device__ inline uint32_t place_of(float x) {
    if (x != x) return 0;
    const uint32_t bits = __float_as_uint(x + 0.0f);
    return bits >> 31 ? bits : bits ^ 0x7fffffffu;
}

__device__ inline float value_at(uint32_t place) {
    return __uint_as_float(place >> 31 ? place : place ^ 0x7fffffffu);
}

// The values from which a row's token is drawn: logits after penalty and temperature.
template <class T>
struct Row {
    const T* logits;
    const uint8_t* seen;
    uint32_t vocab;
    float temperature;
    float penalty;

    __device__ Row(const SampleTokenParams& p, int b)
        : logits(static_cast<const T*>(p.logits) + int64_t{b} * p.vocab),
          seen(p.seen + int64_t{b} * p.vocab),
          vocab(p.vocab),
          temperature(p.temperature[b]),
          penalty(p.penalty[b]) {
    }

    __device__ float scaled(uint32_t i) const {
        float x = widen(logits[i]);
        if (penalty != 1.0f && seen[i]) x = x > 0.0f ? x / penalty : x * penalty;
        return temperature == 0.0f ? x : x / temperature;
    }

    // Calls visit(i, x) for every token of this thread, which is one of the cluster's.
    template <class Visit>
    __device__ void each(const Visit& visit) const {
        const uint32_t stride = cluster_size() * kThreads;
        for (uint32_t first = cluster_rank() * kThreads + threadIdx.x; first < vocab; first += kUnroll * stride) {
            float x[kUnroll];
#pragma unroll
            for (int u = 0; u < kUnroll; ++u) x[u] = first + u * stride < vocab ? scaled(first + u * stride) : 0.0f;
#pragma unroll
            for (int u = 0; u < kUnroll; ++u) {
                if (first + u * stride < vocab) visit(first + u * stride, x[u]);
            }
        }
    }
};

// A token's unnormalized probability as an integer, so that their sum is the same in any order; the sum is below 2^63.
struct Mass {
    float largest;
    float unit;

    __device__ uint64_t operator()(float x) const {
        return static_cast<uint64_t>(expf(x - largest) * unit);
    }
};

template <class Combine>
__device__ inline uint64_t over_lanes(uint64_t x, const Combine& combine) {
#pragma unroll
    for (int lanes = kWarp / 2; lanes; lanes /= 2) x = combine(x, __shfl_xor_sync(kAllLanes, x, lanes));
    return x;
}

// Reduces over the threads of the cluster; every one of them gets the result.
template <class Combine>
__device__ inline uint64_t over_cluster(uint64_t x, int& turn, const Combine& combine) {
    const int lane = threadIdx.x % kWarp;
    uint64_t* of_warp = next_exchange(turn).of_warp;
    x = over_lanes(x, combine);
    if (lane == 0) of_warp[threadIdx.x / kWarp] = x;
    cluster_sync();
    x = in_block(0, of_warp)[lane];
    for (unsigned rank = 1; rank < cluster_size(); ++rank) x = combine(x, in_block(rank, of_warp)[lane]);
    return over_lanes(x, combine);
}

// By one warp: the first i below `count`, a multiple of kWarp, for which before + at(0) + ... + at(i) reaches the goal,
// or else the last. at(0) + ... + at(i - 1) is added to `before`.
template <class At>
__device__ inline int reaches(uint64_t goal, uint64_t& before, int count, const At& at) {
    const int lane = threadIdx.x % kWarp;
    for (int first = 0; first < count; first += kWarp) {
        const uint64_t own = at(first + lane);
        uint64_t sum = own;
#pragma unroll
        for (int lanes = 1; lanes < kWarp; lanes *= 2) {
            const uint64_t lower = __shfl_up_sync(kAllLanes, sum, lanes);
            if (lane >= lanes) sum += lower;
        }
        const unsigned there = __ballot_sync(kAllLanes, before + sum >= goal);
        const int last = there ? __ffs(there) - 1 : kWarp - 1;
        before += __shfl_sync(kAllLanes, there ? sum - own : sum, last);
        if (there) return first + last;
    }
    return count - 1;
}

// Finds where the weights of the tokens, in the order of their places of `bits` bits, reach the goal: digit by digit,
// each time among the tokens that share all higher digits. Every thread of the cluster gets the result.
template <class T, class Place, class Weight>
__device__ inline Found search(const Row<T>& row, int& turn, int bits, uint64_t goal, const Place& place,
                               const Weight& weight) {
    const int lane = threadIdx.x % kWarp, warp = threadIdx.x / kWarp;
    Found found{0, 0};
    while (bits > 0) {
        const int width = min(bits, kDigit);
        bits -= width;
        Exchange& ours = next_exchange(turn);
        for (int i = threadIdx.x; i < kBins; i += kThreads) ours.bins[i] = {0, 0};
        __syncthreads();
        row.each([&](uint32_t i, float x) {
            const uint32_t at = place(i, x) >> bits;
            if (at >> width != found.place) return;
            const uint64_t w = weight(i, x);
            if (w) ours.bins[at & ((1u << width) - 1)].add(w);
        });
        __syncthreads();
        if (threadIdx.x < kGroups) {
            const Bin* group = ours.bins + threadIdx.x * kWarp;
            uint64_t sum = 0;
            for (int i = 0; i < kWarp; ++i) sum += group[(i + lane) % kWarp].sum();  // lanes in different banks
            ours.groups[threadIdx.x] = {static_cast<uint32_t>(sum), static_cast<uint32_t>(sum >> 32)};
        }
        cluster_sync();
        if (warp == 0) {
            const auto over_blocks = [](Bin* bins) {
                return [=](int i) {
                    uint64_t sum = 0;
                    for (unsigned rank = 0; rank < cluster_size(); ++rank) sum += in_block(rank, bins)[i].sum();
                    return sum;
                };
            };
            const int group = reaches(goal, found.before, kGroups, over_blocks(ours.groups)) * kWarp;
            const int bin = reaches(goal, found.before, kWarp, over_blocks(ours.bins + group));
            found.place = found.place << width | static_cast<uint32_t>(group + bin);
            if (lane == 0) shared().found = found;
        }
        __syncthreads();
        found = shared().found;
    }
    return found;
}

// The least integer that is not below (if kAbove, that is above) share * total, between 1 and total.
template <bool kAbove>
__device__ inline uint64_t goal_of(float share, uint64_t total) {
    const double exact = static_cast<double>(share) * static_cast<double>(total);
    if (!(exact < static_cast<double>(total))) return total;
    if (!(exact > 0.0)) return 1;
    return kAbove ? static_cast<uint64_t>(exact) + 1 : static_cast<uint64_t>(ceil(exact));
}

// Top-k and top-p keep the first tokens of one order, from the most probable down, and the uniform number picks one of
// those. Each of these limits is where a sum of counts or of masses reaches a goal. The search gives a value, a
// division gives how many of the tokens with that value the sum needs, and a search by index finds the last one of
// these.
enum Stage { kTopK, kTopP, kDraw, kTie };

template <class T>
__device__ inline uint32_t draw(const SampleTokenParams& p, int b, const Row<T>& row, float largest, int& turn) {
    const int bits = kWarp - __clz(p.vocab);
    const Mass mass{largest, static_cast<float>(uint64_t{1} << (62 - bits))};
    const int top_k = p.top_k[b];
    const float top_p = p.top_p[b], uniform = p.uniforms[int64_t{b} * p.steps + min(p.step[b], p.steps - 1)];
    Found last{0xffffffffu, 0};  // after every value
    uint64_t ties = 0;           // how many of the tokens at that place are kept
    uint64_t kept = 0;           // the mass up to and with them
#pragma unroll 1
    for (int stage = top_k > 0 && top_k < p.vocab ? kTopK : kTopP; stage <= kTie; ++stage) {
        if (stage == kTopP) {
            row.each([&](uint32_t, float x) { kept += place_of(x) < last.place ? mass(x) : 0; });
            kept = over_cluster(kept, turn, [](uint64_t x, uint64_t y) { return x + y; });
            if (ties) kept += ties * mass(value_at(last.place));
            if (!(top_p < 1.0f)) continue;
        }
        const uint64_t goal = stage == kTopK   ? top_k
                              : stage == kTopP ? goal_of<false>(top_p, kept)
                              : stage == kDraw ? goal_of<true>(uniform, kept)
                                               : ties;
        const auto place = [&](uint32_t i, float x) { return stage == kTie ? i : place_of(x); };
        const auto weight = [&](uint32_t, float x) {
            return stage == kTopK ? 1 : stage == kTie ? place_of(x) == last.place : mass(x);
        };
        last = search(row, turn, stage == kTie ? bits : 32, goal, place, weight);
        if (stage == kTopK) ties = goal - last.before;
        if (stage == kTopP || stage == kDraw) {
            const uint64_t each = mass(value_at(last.place));
            ties = (goal - last.before - 1) / each + 1;
            kept = last.before + ties * each;
        }
    }
    return last.place;
}

// A cluster of blocks takes a row. Each pass computes the scaled logits again: they are few enough for the caches.
template <class T>
__global__ void __launch_bounds__(kThreads, 1) sample_token_kernel(const __grid_constant__ SampleTokenParams p) {
    const int b = static_cast<int>(blockIdx.x / cluster_size());
    start_next();
    wait_for_inputs();
    const Row<T> row(p, b);
    int turn = 0;
    uint64_t first = ~uint64_t{0};  // the first place, and its first token
    row.each([&](uint32_t i, float x) { first = min(first, uint64_t{place_of(x)} << 32 | i); });
    first = over_cluster(first, turn, [](uint64_t x, uint64_t y) { return min(x, y); });
    const float largest = value_at(static_cast<uint32_t>(first >> 32));
    uint32_t choice = static_cast<uint32_t>(first);
    // without a finite one there are no probabilities
    if (row.temperature != 0.0f && fabsf(largest) < INFINITY) choice = draw(p, b, row, largest, turn);
    cluster_sync();  // every block has read seen and step, and what other blocks hold
    if (cluster_rank() == 0 && threadIdx.x == 0) {
        p.token[b] = static_cast<int32_t>(choice);
        p.seen[int64_t{b} * p.vocab + choice] = 1;
        p.step[b] += 1;
    }
}

template <class T>
Refusal launch_rows(const SampleTokenParams& p, void* stream) {
    const auto kernel = sample_token_kernel<T>;
    constexpr int kPerBlock = kThreads * kUnroll;
    unsigned cluster = 1;
    while (architecture(kernel) >= 90 && cluster < kMaxCluster && int64_t{cluster} * kPerBlock < p.vocab) cluster *= 2;
    return launch(kernel, Shape{int64_t{p.rows} * cluster, kThreads, sizeof(Shared), cluster, true}, p, stream);
}

}  // namespace

Refusal sample_token(const SampleTokenParams& params, void* stream) {
    if (const Refusal refusal = check(params)) return refusal;
    if (params.dtype == Dtype::f32) return launch_rows<float>(params, stream);
    return launch_rows<bf16>(params, stream);
}

}  // namespace flashjanus::cuda
