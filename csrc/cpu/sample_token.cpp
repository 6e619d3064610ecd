// Draws a token from each row's distribution without sorting it: the sums that top-k, top-p and the draw compare with
// their goals are found digit by digit, as on a GPU (cuda/sample_token.cu). See flow_update.cpp for what a file
// compiled per instruction set must not do.
#include "cpu/sample_token.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/parallel.h"

constexpr int32_t kBlock = 256;  // tokens at once
constexpr int kDigit = 11;       // bits of a place that a pass over the row decides
constexpr int kBins = 1 << kDigit;
constexpr uint32_t kNowhere = 0xffffffffu;  // after every value

// Orders values from the largest down: 0 and -0 share a place, as equal values do, and NaN has the first.
INLINE U32 places(F32 x) {
    const U32 bits = (U32)(x + 0.0f);
    const U32 place = (I32)bits < 0 ? bits : bits ^ 0x7fffffffu;
    return x == x ? place : U32{};
}

INLINE float value_at(uint32_t place) {
    const uint32_t bits = place >> 31 ? place : place ^ 0x7fffffffu;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// The values from which a row's token is drawn: logits after penalty and temperature.
template <class T>
struct Row {
    const T* logits;
    const uint8_t* seen;
    int32_t vocab;
    float temperature;
    float penalty;

    Row(const SampleTokenParams& p, int64_t b)
        : logits(static_cast<const T*>(p.logits) + b * p.vocab),
          seen(p.seen + b * p.vocab),
          vocab(p.vocab),
          temperature(p.temperature[b]),
          penalty(p.penalty[b]) {
    }

    // Writes the values of kBlock tokens from `first` on, -infinity after the last, and returns how many there are.
    INLINE int32_t scaled(int32_t first, float* x) const {
        const int32_t count = vocab - first < kBlock ? vocab - first : kBlock;
        for (int32_t i = 0; i < count; i += kLanes) {
            F32 lanes = load(logits + first + i, count - i);
            if (penalty != 1.0f) {
                float each[kLanes];
                store(each, lanes);
                for (int32_t l = 0; l < kLanes && i + l < count; ++l) {
                    if (seen[first + i + l]) each[l] = each[l] > 0.0f ? each[l] / penalty : each[l] * penalty;
                }
                lanes = load(each);
            }
            store(x + i, temperature == 0.0f ? lanes : lanes / temperature);
        }
        for (int32_t i = count; i < kBlock; ++i) x[i] = -__builtin_inff();
        return count;
    }
};

// A token's unnormalized probability as an integer, so that their sum is the same in any order; the sum is below 2^63.
struct Mass {
    float largest;
    float unit;

    INLINE int64_t operator()(float x) const {
        float lanes[kLanes];
        store(lanes, exp(splat(x - largest)) * unit);
        return static_cast<int64_t>(lanes[0]);
    }
};

// The place at which a sum over the tokens reaches its goal, and the sum before that place.
struct Found {
    uint32_t place;
    int64_t before;
};

// The first token at the first place.
template <class T>
int32_t first_of(const Row<T>& row, float& largest) {
    float x[kBlock];
    uint32_t best = kNowhere, lanes[kLanes];
    int32_t choice = 0;
    for (int32_t first = 0; first < row.vocab; first += kBlock) {
        row.scaled(first, x);
        U32 least = places(load(x));
        for (int32_t i = kLanes; i < kBlock; i += kLanes) {
            const U32 here = places(load(x + i));
            least = here < least ? here : least;
        }
        __builtin_memcpy(lanes, &least, sizeof lanes);
        uint32_t place = lanes[0];
        for (int32_t l = 1; l < kLanes; ++l) place = lanes[l] < place ? lanes[l] : place;
        if (place >= best) continue;
        best = place;
        for (int32_t i = 0, found = 0; i < kBlock && !found; i += kLanes) {
            const U32 here = places(load(x + i));
            __builtin_memcpy(lanes, &here, sizeof lanes);
            for (int32_t l = 0; l < kLanes && !found; ++l) {
                if (lanes[l] == place) choice = first + i + l, found = 1;
            }
        }
    }
    largest = value_at(best);
    return choice;
}

// Calls visit(place, mass, count) for all tokens, some at a time. mass is null if it is not needed.
template <bool kMass, class T, class Visit>
INLINE void each(const Row<T>& row, const Mass& mass, const Visit& visit) {
    float x[kBlock], m[kBlock];
    uint32_t place[kBlock];
    for (int32_t first = 0; first < row.vocab; first += kBlock) {
        const int32_t count = row.scaled(first, x);
        for (int32_t i = 0; i < kBlock; i += kLanes) {
            const F32 lanes = load(x + i);
            const U32 at = places(lanes);
            __builtin_memcpy(place + i, &at, sizeof at);
            if (kMass) store(m + i, exp(lanes - mass.largest) * mass.unit);
        }
        for (int32_t i = 0; i < count; ++i) visit(place[i], kMass ? static_cast<int64_t>(m[i]) : 1);
    }
}

// Finds where the masses of the tokens (or their number), summed from the first place on, reach the goal: digit by
// digit, each time among the tokens that share all higher digits.
template <bool kMass, class T>
Found search(const Row<T>& row, const Mass& mass, int64_t goal) {
    Found found{0, 0};
    for (int bits = 32; bits > 0;) {
        const int width = bits < kDigit ? bits : kDigit;
        bits -= width;
        int64_t bins[kBins] = {};
        each<kMass>(row, mass, [&](uint32_t place, int64_t weight) {
            const uint32_t at = place >> bits;
            if (at >> width == found.place) bins[at & ((1u << width) - 1)] += weight;
        });
        int32_t bin = 0;
        for (; bin < (1 << width) - 1 && found.before + bins[bin] < goal; ++bin) found.before += bins[bin];
        found.place = found.place << width | static_cast<uint32_t>(bin);
    }
    return found;
}

// The least integer that is not below (if kAbove, that is above) share * total, between 1 and total.
template <bool kAbove>
INLINE int64_t goal_of(float share, int64_t total) {
    const double exact = static_cast<double>(share) * static_cast<double>(total);
    if (!(exact < static_cast<double>(total))) return total;
    if (!(exact > 0.0)) return 1;
    const auto whole = static_cast<int64_t>(exact);
    return whole + (kAbove || static_cast<double>(whole) < exact);
}

// The `ties`-th token at `place`.
template <class T>
int32_t token_at(const Row<T>& row, uint32_t place, int64_t ties) {
    float x[kBlock];
    uint32_t lanes[kLanes];
    for (int32_t first = 0; first < row.vocab; first += kBlock) {
        const int32_t count = row.scaled(first, x);
        for (int32_t i = 0; i < count; i += kLanes) {
            const U32 here = places(load(x + i));
            __builtin_memcpy(lanes, &here, sizeof lanes);
            for (int32_t l = 0; l < kLanes && i + l < count; ++l) {
                if (lanes[l] == place && --ties == 0) return first + i + l;
            }
        }
    }
    return row.vocab - 1;
}

// Top-k and top-p keep the first tokens of one order, from the most probable down, and the uniform number picks one of
// those. Each of these limits is where a sum of counts or of masses reaches a goal. The search gives a place, and a
// division gives how many of the tokens at that place the sum needs.
template <class T>
int32_t draw(const SampleTokenParams& p, int64_t b, const Row<T>& row, float largest) {
    const int bits = 32 - __builtin_clz(static_cast<uint32_t>(p.vocab));
    const Mass mass{largest, static_cast<float>(int64_t{1} << (62 - bits))};
    const int32_t top_k = p.top_k[b], number = p.step[b] < p.steps ? p.step[b] : p.steps - 1;
    Found last{kNowhere, 0};
    int64_t ties = 0;  // how many of the tokens at that place are kept
    if (top_k > 0 && top_k < p.vocab) {
        last = search<false>(row, mass, top_k);
        ties = top_k - last.before;
    }
    int64_t kept = ties ? ties * mass(value_at(last.place)) : 0;
    each<true>(row, mass, [&](uint32_t place, int64_t weight) { kept += place < last.place ? weight : 0; });
    const auto up_to = [&](int64_t goal) {
        last = search<true>(row, mass, goal);
        const int64_t one = mass(value_at(last.place));
        ties = (goal - last.before - 1) / (one > 1 ? one : 1) + 1;
        kept = last.before + ties * one;
    };
    if (p.top_p[b] < 1.0f) up_to(goal_of<false>(p.top_p[b], kept));
    up_to(goal_of<true>(p.uniforms[b * p.steps + number], kept));
    return token_at(row, last.place, ties);
}

template <class T>
void sample(const SampleTokenParams& p, int64_t b) {
    const Row<T> row(p, b);
    float largest;
    int32_t choice = first_of(row, largest);
    // without a finite one there are no probabilities
    if (row.temperature != 0.0f && __builtin_fabsf(largest) < __builtin_inff()) choice = draw(p, b, row, largest);
    p.token[b] = choice;
    p.seen[b * p.vocab + choice] = 1;
    p.step[b] += 1;
}

}  // namespace

void sample_token(const SampleTokenParams& p) {
    double nanoseconds = 0.0;
    for (int32_t b = 0; b < p.rows; ++b) nanoseconds += (p.temperature[b] == 0.0f ? 0.5 : 20.0) * p.vocab;
    with_type(p.dtype, [&](auto x) {
        parallel_for(p.threads, p.rows, nanoseconds, [&](int64_t b) { sample<decltype(x)>(p, b); });
    });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
