// Exact GELU with the sums of its squares per channel, in one pass over x. See flow_update.cpp for what a file compiled
// per instruction set must not do.
#include "cpu/gelu_grn_stats.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/slices.h"
#include "cpu/vector.h"

#include "cpu/parallel.h"

constexpr int32_t kRun = 32;  // positions that are summed separately, so that small terms are not added to a large sum

// Channels first .. first + count - 1 of one image.
template <class T>
INLINE void slice(const GeluGrnStatsParams& p, int32_t b, int32_t first, int32_t count) {
    float total[kSlice] = {};
    for (int32_t start = 0; start < p.positions; start += kRun) {
        float run[kSlice] = {};
        for (int32_t i = start; i < p.positions && i < start + kRun; ++i) {
            const int64_t at = (int64_t{b} * p.positions + i) * p.channels + first;
            const T* x = static_cast<const T*>(p.x) + at;
            T* y = static_cast<T*>(p.y) + at;
            for (int32_t c = 0; c < count; c += kLanes) {
                store(y + c, gelu(load(x + c, count - c)), count - c);
                const F32 stored = load(y + c, count - c);
                store(run + c, load(run + c) + stored * stored);
            }
        }
        for (int32_t c = 0; c < count; c += kLanes) store(total + c, load(total + c) + load(run + c));
    }
    __builtin_memcpy(p.sumsq + int64_t{b} * p.channels + first, total, count * sizeof(float));
}

template <class T>
void slices(const GeluGrnStatsParams& p) {
    const Slices cut(p.batch, p.channels, p.threads);
    const double work = 1.1 * p.batch * p.positions * p.channels;
    parallel_for(p.threads, cut.count, work, [&](int64_t item) {
        const auto i = static_cast<int32_t>(item);
        slice<T>(p, cut.image(i), cut.first(i), cut.width(i));
    });
}

}  // namespace

void gelu_grn_stats(const GeluGrnStatsParams& p) {
    if (p.dtype == Dtype::f32) return slices<float>(p);
    return slices<bf16>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
