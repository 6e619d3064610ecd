// Keeps or recalls what layers add. See flow_update.cpp for what a file compiled per instruction set must not do.
#include "cpu/step_cache.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/parallel.h"

template <class S>
F32 weighted(F32 sum, float weight, const S* slot, int32_t left) {
    return weight == 0.0f ? sum : sum + load(slot, left) * weight;
}

template <class X, class S>
void rows(const StepCacheParams& p) {
    const int64_t count = int64_t{p.batch} * p.positions;
    parallel_for(p.threads, count, 0.3 * count * p.channels, [&](int64_t i) {
        const int64_t b = i / p.positions, image = b < p.images ? b : b - p.images;
        const int32_t step = p.step[image] < p.evaluations ? p.step[image] : p.evaluations - 1;
        const StepCacheLine& line = p.lines[image * p.evaluations + step];
        const bool recalls = !p.total || line.recall != 0.0f;
        const X* x = static_cast<const X*>(p.x) + (image * p.positions + i % p.positions) * p.channels;
        const X* total = static_cast<const X*>(p.total) + i * p.channels;
        S* slots[] = {static_cast<S*>(p.slot_0) + i * p.channels, static_cast<S*>(p.slot_1) + i * p.channels};
        S* kept = line.slot < 0.0f ? nullptr : slots[line.slot > 0.0f];
        X* y = static_cast<X*>(p.y) + i * p.channels;
        for (int32_t c = 0; c < p.channels; c += kLanes) {
            const int32_t left = p.channels - c;
            const F32 before = load(x + c, left);
            if (recalls) {
                const F32 first = weighted(before, line.w_0, slots[0] + c, left);
                store(y + c, weighted(first, line.w_1, slots[1] + c, left), left);
                continue;
            }
            const F32 after = load(total + c, left);
            store(y + c, after, left);
            if (kept) store(kept + c, after - before, left);
        }
    });
}

}  // namespace

void step_cache(const StepCacheParams& p) {
    with_type(p.x_dtype,
              [&](auto x) { with_type(p.slot_dtype, [&](auto slot) { rows<decltype(x), decltype(slot)>(p); }); });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
