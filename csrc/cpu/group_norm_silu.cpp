// GroupNorm with SiLU or without, NHWC: one pass over x for the statistics, one for y. See flow_update.cpp for what a
// file compiled per instruction set must not do.
#include "cpu/group_norm_silu.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/parallel.h"

// Positions are cut into the same number of parts whatever the number of threads, so the statistics always have the
// same bits.
constexpr int32_t kParts = 32;
constexpr int32_t kSamples = 16;

// Sums over some elements of their distance to a pivot and of its square.
struct Sums {
    double distance;
    double square;
};

// The pivot of each group for all its channels: its mean over a few positions. Sums of distances to it do not cancel,
// unlike sums of values with a large mean.
template <class T>
void pivots_of(const GroupNormSiluParams& p, const T* x, float* pivots) {
    const int32_t width = p.channels / p.groups;
    const int32_t apart = (p.positions + kSamples - 1) / kSamples;
    const int32_t samples = (p.positions + apart - 1) / apart;
    for (int32_t c = 0; c < p.channels; c += kLanes) {
        F32 total{};
        for (int32_t i = 0; i < samples; ++i) total += load(x + int64_t{i} * apart * p.channels + c, p.channels - c);
        store(pivots + c, total);
    }
    for (int32_t first = 0; first < p.channels; first += width) {
        float total = 0.0f;
        for (int32_t c = first; c < first + width; ++c) total += pivots[c];
        for (int32_t c = first; c < first + width; ++c) pivots[c] = total / static_cast<float>(samples * width);
    }
}

// The sums of every group over positions first .. last - 1.
template <class T>
void part(const GroupNormSiluParams& p, const T* x, const float* pivots, int32_t first, int32_t last, Sums* groups) {
    float distances[kMaxNormChannels] = {}, squares[kMaxNormChannels] = {};
    for (int32_t i = first; i < last; ++i) {
        const T* from = x + int64_t{i} * p.channels;
        for (int32_t c = 0; c < p.channels; c += kLanes) {
            const F32 v = load(from + c, p.channels - c) - load(pivots + c);
            store(distances + c, load(distances + c) + v);
            store(squares + c, load(squares + c) + v * v);
        }
    }
    const int32_t width = p.channels / p.groups;
    for (int32_t g = 0; g < p.groups; ++g) {
        groups[g] = {};
        for (int32_t c = g * width; c < (g + 1) * width; ++c) {
            groups[g].distance += distances[c];
            groups[g].square += squares[c];
        }
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
    float pivots[kMaxNormChannels], means[kMaxNormChannels], scales[kMaxNormChannels];
    pivots_of(p, x, pivots);
    Sums parts[kParts][kMaxNormGroups];
    const int32_t length = (p.positions + kParts - 1) / kParts;
    const int32_t count = (p.positions + length - 1) / length;
    const double work = 0.4 * p.positions * p.channels;
    parallel_for(p.threads, count, work, [&](int64_t i) {
        const auto first = static_cast<int32_t>(i * length);
        part(p, x, pivots, first, p.positions - first < length ? p.positions : first + length, parts[i]);
    });
    const int32_t width = p.channels / p.groups;
    const double elements = static_cast<double>(p.positions) * width;
    for (int32_t g = 0; g < p.groups; ++g) {
        Sums all{};
        for (int32_t i = 0; i < count; ++i) {
            all.distance += parts[i][g].distance;
            all.square += parts[i][g].square;
        }
        const double mean = all.distance / elements;
        const double variance = all.square / elements - mean * mean;
        const float scale = 1.0f / __builtin_sqrtf(static_cast<float>(variance < 0.0 ? 0.0 : variance) + p.eps);
        for (int32_t c = g * width; c < (g + 1) * width; ++c) {
            means[c] = static_cast<float>(pivots[c] + mean);
            scales[c] = scale * p.weight[c];
        }
    }
    parallel_for(p.threads, p.positions, p.silu ? 2.5 * work : work,
                 [&](int64_t i) { finish(p, x + i * p.channels, means, scales, y + i * p.channels); });
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
