// GroupNorm with SiLU or without, NHWC: one pass over x for the statistics, one for y. See cfg_euler.cpp for what a
// file compiled per instruction set must not do.
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

// Positions are cut into as many parts whatever the number of threads, so the statistics always have the same bits.
constexpr int32_t kParts = 32;

// Mean and centred sum of squares of some elements.
struct Moments {
    float count;
    float mean;
    float squares;
};

// Chan, Golub and LeVeque's update.
INLINE Moments join(const Moments& a, const Moments& b) {
    const float count = a.count + b.count;
    if (count == 0.0f) return a;
    const float delta = b.mean - a.mean;
    const float share = b.count / count;
    return {count, a.mean + delta * share, a.squares + b.squares + delta * delta * a.count * share};
}

// The moments of every group over positions first .. last - 1. Sums are of the distance to one of the group's values: a
// large mean with a small variance would cancel.
template <class T>
void part(const GroupNormSiluParams& p, const T* x, int32_t first, int32_t last, Moments* groups) {
    float pivots[kMaxNormChannels], sums[kMaxNormChannels], squares[kMaxNormChannels];
    const int32_t width = p.channels / p.groups;
    for (int32_t c = 0; c < p.channels; ++c) {
        pivots[c] = c % width ? pivots[c - 1] : load(x + int64_t{first} * p.channels + c, 1)[0];
        sums[c] = squares[c] = 0.0f;
    }
    for (int32_t i = first; i < last; ++i) {
        const T* from = x + int64_t{i} * p.channels;
        for (int32_t c = 0; c < p.channels; c += kLanes) {
            const F32 v = load(from + c, p.channels - c) - load(pivots + c);
            store(sums + c, load(sums + c) + v);
            store(squares + c, load(squares + c) + v * v);
        }
    }
    const float count = static_cast<float>(last - first) * width;
    for (int32_t g = 0; g < p.groups; ++g) {
        float total = 0.0f, total_squares = 0.0f;
        for (int32_t c = g * width; c < (g + 1) * width; ++c) {
            total += sums[c];
            total_squares += squares[c];
        }
        const float mean = total / count;
        groups[g] = {count, pivots[g * width] + mean, total_squares - total * mean};
    }
}

// x -> (x - means) * scales + bias, by channel.
template <class T>
INLINE void finish(const GroupNormSiluParams& p, const T* x, const float* means, const float* scales, T* y) {
    for (int32_t c = 0; c < p.channels; c += kLanes) {
        const int32_t count = p.channels - c;
        const F32 v = (load(x + c, count) - load(means + c)) * load(scales + c) + load(p.bias + c, count);
        store(y + c, p.silu ? silu(v) : v, count);
    }
}

template <class T>
void image(const GroupNormSiluParams& p, const T* x, T* y) {
    Moments parts[kParts][kMaxNormGroups];
    const int32_t length = (p.positions + kParts - 1) / kParts;
    const int32_t count = (p.positions + length - 1) / length;
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int32_t i = 0; i < count; ++i) {
        const int32_t first = i * length;
        part(p, x, first, p.positions - first < length ? p.positions : first + length, parts[i]);
    }
    float means[kMaxNormChannels], scales[kMaxNormChannels];
    const int32_t width = p.channels / p.groups;
    for (int32_t g = 0; g < p.groups; ++g) {
        Moments all{};
        for (int32_t i = 0; i < count; ++i) all = join(all, parts[i][g]);
        const float scale = 1.0f / __builtin_sqrtf(all.squares / all.count + p.eps);
        for (int32_t c = g * width; c < (g + 1) * width; ++c) {
            means[c] = all.mean;
            scales[c] = scale * p.weight[c];
        }
    }
#pragma omp parallel for schedule(static) num_threads(p.threads)
    for (int32_t i = 0; i < p.positions; ++i) {
        finish(p, x + int64_t{i} * p.channels, means, scales, y + int64_t{i} * p.channels);
    }
}

template <class T>
void images(const GroupNormSiluParams& p) {
    for (int32_t b = 0; b < p.batch; ++b) {
        const int64_t at = int64_t{b} * p.positions * p.channels;
        image(p, static_cast<const T*>(p.x) + at, static_cast<T*>(p.y) + at);
    }
}

}  // namespace

void group_norm_silu(const GroupNormSiluParams& p) {
    if (p.dtype == Dtype::f32) return images<float>(p);
    return images<bf16>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
