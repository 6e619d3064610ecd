// Compiled once per instruction set, into a namespace named by FLASHJANUS_ISA.
// Trap: an inline function with external linkage that is used here could be merged by the linker into its AVX-512 copy
// and then run on a machine without it. Everything below is therefore local to the namespace, and no library header
// with inline functions is included. Contraction to FMA is off, so every instruction set gives the same bits.
// No threads: a 1.3B row (9216 elements) takes microseconds, less than waking a thread.
#include <cstdint>

#include "params.h"

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

// Tokens whose velocities fit this buffer are combined in one pass over contiguous memory, then added to z.
constexpr int64_t kBuffer = kMaxPatchValues;

template <class T>
void combine(const T* __restrict cond, const T* __restrict uncond, float* __restrict delta, int64_t count,
             float guidance, float scale) {
    if (!uncond) {
        for (int64_t i = 0; i < count; ++i) delta[i] = widen(cond[i]) * scale;
        return;
    }
    const float less = guidance - 1.0f;
    for (int64_t i = 0; i < count; ++i) delta[i] = (guidance * widen(cond[i]) - less * widen(uncond[i])) * scale;
}

// z[dy * line + x * P + dx] += delta[x * token + dy * P + dx], for one channel of some neighbouring tokens.
template <int P>
void add_patches(const float* __restrict delta, float* __restrict z, int64_t count, int64_t patch, int64_t token,
                 int64_t line) {
    const int64_t p = P ? P : patch;
    for (int64_t dy = 0; dy < p; ++dy) {
        for (int64_t x = 0; x < count; ++x) {
            for (int64_t dx = 0; dx < p; ++dx) z[dy * line + x * p + dx] += delta[x * token + dy * p + dx];
        }
    }
}

template <int P, class T>
void row(const CfgEulerParams& p, const T* cond, const T* uncond, float* z, float guidance, float scale) {
    const int64_t patch = P ? P : p.patch;
    const int64_t token = p.channels * patch * patch;
    const int64_t line = p.width * patch;
    const int64_t chunk = kBuffer / token;
    float delta[kBuffer];
    for (int64_t y = 0; y < p.height; ++y) {
        for (int64_t x = 0; x < p.width; x += chunk) {
            const int64_t count = x + chunk < p.width ? chunk : p.width - x;
            const int64_t from = (y * p.width + x) * token;
            combine(cond + from, uncond ? uncond + from : nullptr, delta, count * token, guidance, scale);
            for (int64_t c = 0; c < p.channels; ++c) {
                float* to = z + (c * p.height + y) * patch * line + x * patch;
                add_patches<P>(delta + c * patch * patch, to, count, patch, token, line);
            }
        }
    }
}

template <int P, class T>
void rows(const CfgEulerParams& p) {
    const int64_t size = int64_t{p.channels} * p.height * p.width * p.patch * p.patch;
    const T* v = static_cast<const T*>(p.v);
    for (int64_t r = 0; r < p.rows; ++r) {
        if (p.step[r] >= p.steps[r]) continue;
        const float scale = 1.0f / static_cast<float>(p.steps[r]);
        const T* uncond = r < p.unconditional ? v + (p.rows + r) * size : nullptr;
        row<P>(p, v + r * size, uncond, p.z + r * size, p.guidance[r], scale);
        p.step[r] += 1;
    }
}

template <class T>
void any_patch(const CfgEulerParams& p) {
    if (p.patch == 1) return rows<1, T>(p);
    if (p.patch == 2) return rows<2, T>(p);
    return rows<0, T>(p);
}

}  // namespace

void cfg_euler(const CfgEulerParams& p) {
    if (p.v_dtype == Dtype::f32) return any_patch<float>(p);
    return any_patch<uint16_t>(p);
}

}  // namespace flashjanus::cpu::FLASHJANUS_ISA
