// Compiled once per instruction set, into a namespace named by FLASHJANUS_ISA.
// Trap: an inline function with external linkage that is used here could be merged by the linker into its AVX-512 copy
// and then run on a machine without it. Everything below is therefore local to the namespace, and no library header
// with inline functions is included.
// No threads: a 1.3B row (9216 elements) takes microseconds, less than waking a thread.
// No contraction to FMA, so that every instruction set and the GPU give the same bits.
// Compiled with: -ffp-contract=off
#include <cstdint>

#include "cpu/flow_update.h"

namespace flashjanus::cpu::FLASHJANUS_ISA {
namespace {

inline float widen(float x) {
    return x;
}

// bf16 is the upper half of a float32.
inline float widen(uint16_t x) {
    const uint32_t bits = static_cast<uint32_t>(x) << 16;
    float value;
    __builtin_memcpy(&value, &bits, sizeof value);
    return value;
}

// Tokens whose velocities fit this buffer are combined in one pass over contiguous memory, then laid out as z is.
constexpr int64_t kBuffer = kMaxPatchValues;

// w = cond, or where there is an unconditional velocity, scale * (guidance * cond - (guidance - 1) * uncond).
template <class T>
void combine(const T* __restrict cond, const T* __restrict uncond, float* __restrict w, int64_t count, float guidance,
             float scale) {
    if (!uncond) {
        for (int64_t i = 0; i < count; ++i) w[i] = widen(cond[i]);
        return;
    }
    const float less = guidance - 1.0f;
    for (int64_t i = 0; i < count; ++i) w[i] = (guidance * widen(cond[i]) - less * widen(uncond[i])) * scale;
}

// 1 + share * (std(cond) / std(w) - 1) over a row's values, w = guidance * cond - (guidance - 1) * uncond.
template <class T>
float rescaling(const T* __restrict cond, const T* __restrict uncond, int64_t count, float guidance, float share) {
    const float less = guidance - 1.0f;
    double cond_sum = 0, cond_squares = 0, sum = 0, squares = 0;
    for (int64_t i = 0; i < count; ++i) {
        const double c = widen(cond[i]), w = guidance * widen(cond[i]) - less * widen(uncond[i]);
        cond_sum += c, cond_squares += c * c;
        sum += w, squares += w * w;
    }
    const double ratio = (cond_squares - cond_sum * cond_sum / count) / (squares - sum * sum / count);
    return 1.0f + share * (static_cast<float>(__builtin_sqrt(ratio)) - 1.0f);
}

// One channel of some neighboring tokens: w[x * token + dy * P + dx] moves z[dy * line + x * P + dx], and h there.
template <int P, bool kHistory>
void move_patches(const FlowEvaluation& e, const float* __restrict w, float* __restrict z, float* __restrict h,
                  int64_t count, int64_t patch, int64_t token, int64_t line) {
    const int64_t p = P ? P : patch;
    for (int64_t dy = 0; dy < p; ++dy) {
        for (int64_t x = 0; x < count; ++x) {
            for (int64_t dx = 0; dx < p; ++dx) {
                const int64_t at = dy * line + x * p + dx;
                const float velocity = w[x * token + dy * p + dx], before = z[at];
                z[at] = e.z_z * before + e.z_w * velocity;
                if constexpr (kHistory) {
                    z[at] += e.z_h * h[at];
                    h[at] = e.h_z * before + e.h_w * velocity;
                }
            }
        }
    }
}

template <int P, bool kHistory, class T>
void row(const FlowUpdateParams& p, const FlowEvaluation& e, const T* cond, const T* uncond, float* z, float* h) {
    const int64_t patch = P ? P : p.patch;
    const int64_t token = p.channels * patch * patch;
    const int64_t line = p.width * patch;
    const int64_t chunk = kBuffer / token;
    const bool rescaled = uncond && e.rescale != 0.0f;
    const float scale = rescaled ? rescaling(cond, uncond, p.height * p.width * token, e.guidance, e.rescale) : 1.0f;
    float w[kBuffer];
    for (int64_t y = 0; y < p.height; ++y) {
        for (int64_t x = 0; x < p.width; x += chunk) {
            const int64_t count = x + chunk < p.width ? chunk : p.width - x;
            const int64_t from = (y * p.width + x) * token;
            combine(cond + from, uncond ? uncond + from : nullptr, w, count * token, e.guidance, scale);
            for (int64_t c = 0; c < p.channels; ++c) {
                const int64_t to = (c * p.height + y) * patch * line + x * patch;
                move_patches<P, kHistory>(e, w + c * patch * patch, z + to, h + to, count, patch, token, line);
            }
        }
    }
}

template <int P, class T>
void rows(const FlowUpdateParams& p) {
    const int64_t size = int64_t{p.channels} * p.height * p.width * p.patch * p.patch;
    const T* v = static_cast<const T*>(p.v);
    const FlowEvaluation* schedule = reinterpret_cast<const FlowEvaluation*>(p.schedule);
    for (int64_t r = 0; r < p.rows; ++r) {
        if (p.step[r] >= p.steps[r]) continue;
        const int64_t last = p.evaluations - 1;
        const FlowEvaluation& e = schedule[r * p.evaluations + (p.step[r] < last ? p.step[r] : last)];
        const T* fresh = r < p.unconditional ? v + (p.rows + r) * size : nullptr;
        T* kept = static_cast<T*>(p.kept) + r * size;
        const T* uncond = e.guidance == 1.0f ? nullptr : e.reuse != 0.0f ? kept : fresh;
        if (uncond && uncond != kept && e.keep != 0.0f) __builtin_memcpy(kept, uncond, size * sizeof(T));
        const bool history = e.z_h != 0.0f || e.h_z != 0.0f || e.h_w != 0.0f;
        const auto move = history ? row<P, true, T> : row<P, false, T>;
        move(p, e, v + r * size, uncond, p.z + r * size, p.history + r * size);
        p.step[r] += 1;
    }
}

template <class T>
void any_patch(const FlowUpdateParams& p) {
    if (p.patch == 1) return rows<1, T>(p);
    if (p.patch == 2) return rows<2, T>(p);
    return rows<0, T>(p);
}

}  // namespace

void flow_update(const FlowUpdateParams& p) {
    if (p.v_dtype == Dtype::f32) return any_patch<float>(p);
    return any_patch<uint16_t>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
