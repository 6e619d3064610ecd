// Residual add, then scale and shift from the row's entry in its table. See flow_update.cpp for what a file compiled
// per instruction set must not do.
#include "cpu/residual_modulate.h"
#include "cpu/intrinsics.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

#include "cpu/vector.h"

#include "cpu/parallel.h"

template <class Y, class X, class O>
void rows(const ResidualModulateParams& p) {
    const int64_t count = int64_t{p.batch} * p.positions;
    parallel_for(p.threads, count, 0.3 * count * p.channels, [&](int64_t i) {
        const int32_t b = static_cast<int32_t>(i / p.positions);
        const int32_t image = b < p.images ? b : b - p.images;
        const int32_t step = p.step[image] < p.steps ? p.step[image] : p.steps - 1;
        const float* scale = p.table + image * p.image_stride + step * p.step_stride;
        const float* shift = scale + p.channels;
        const Y* y = static_cast<const Y*>(p.y) + i * p.channels;
        const X* x = static_cast<const X*>(p.x) + i * p.channels;
        O* o = static_cast<O*>(p.o) + i * p.channels;
        for (int32_t c = 0; c < p.channels; c += kLanes) {
            const int32_t left = p.channels - c;
            const F32 total = load(x + c, left) + load(y + c, left);
            store(o + c, total * (1.0f + load(scale + c, left)) + load(shift + c, left), left);
        }
    });
}

}  // namespace

void residual_modulate(const ResidualModulateParams& p) {
    with_type(p.y_dtype, [&](auto y) {
        with_type(p.x_dtype, [&](auto x) {
            with_type(p.o_dtype, [&](auto o) { rows<decltype(y), decltype(x), decltype(o)>(p); });
        });
    });
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
