// The scaling of global response normalization. See flow_update.cpp for what a file compiled per instruction set must
// not do.
#include "cpu/grn_apply.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/slices.h"
#include "cpu/vector.h"

#include "cpu/parallel.h"

INLINE float mean_root(const float* sums, int32_t channels) {
    F32 total{};
    for (int32_t c = 0; c < channels; c += kLanes) total += sqrt(load(sums + c, channels - c));
    return sum(total) / static_cast<float>(channels);
}

// Channels first .. first + count - 1 of one image.
template <class T>
INLINE void slice(const GrnApplyParams& p, int32_t b, int32_t first, int32_t count) {
    float scales[kSlice];
    const float* sums = p.sumsq + int64_t{b} * p.channels;
    const float share = 1.0f / (mean_root(sums, p.channels) + 1e-6f);
    for (int32_t c = 0; c < count; c += kLanes) {
        const F32 n = sqrt(load(sums + first + c, count - c)) * share;
        store(scales + c, load(p.weight + first + c, count - c) * n + 1.0f);
    }
    for (int32_t i = 0; i < p.positions; ++i) {
        const int64_t at = (int64_t{b} * p.positions + i) * p.channels + first;
        const T* y = static_cast<const T*>(p.y) + at;
        T* o = static_cast<T*>(p.o) + at;
        for (int32_t c = 0; c < count; c += kLanes) {
            const F32 bias = load(p.bias + first + c, count - c);
            store(o + c, bias + load(scales + c) * load(y + c, count - c), count - c);
        }
    }
}

template <class T>
void slices(const GrnApplyParams& p) {
    const Slices cut(p.batch, p.channels, p.threads);
    const double work = 0.3 * p.batch * p.positions * p.channels;
    parallel_for(p.threads, cut.count, work, [&](int64_t item) {
        const auto i = static_cast<int32_t>(item);
        slice<T>(p, cut.image(i), cut.first(i), cut.width(i));
    });
}

}  // namespace

void grn_apply(const GrnApplyParams& p) {
    if (p.dtype == Dtype::f32) return slices<float>(p);
    return slices<bf16>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
