#pragma once

#include "kernel.h"

namespace flashjanus {

// The most values (channels * patch * patch) that a token may hold.
inline constexpr int32_t kMaxPatchValues = 4096;

// What a row does in one evaluation: z' = z_z z + z_w w + z_h h and, where z_h, h_z or h_w is not 0, h' = h_z z + h_w
// w.
struct FlowEvaluation {
    float z_z;
    float z_w;
    float z_h;
    float h_z;
    float h_w;
    float guidance;  // 1: no unconditional velocity is read
    float rescale;   // w is drawn by this share toward the standard deviation of the conditional velocity
    float reuse;     // not 0: the unconditional velocity is the one in `kept`
    float keep;      // not 0: the unconditional velocity goes into `kept`
};

// For every image row r with s = step[r] < steps[r]: schedule[r, s] on z[r] and history[r], then step[r] += 1; other
// rows are left untouched. w = unpatchify(v[r]) or, where there is an unconditional velocity u and guidance is not 1,
// unpatchify(guidance * v[r] - (guidance - 1) * u), u = kept[r] or, for r < unconditional, v[rows + r].
struct FlowUpdateParams {
    const void* v;          // [rows + unconditional, height, width, channels * patch * patch], channel-major patches
    float* z;               // [rows, channels, height * patch, width * patch], in place
    float* history;         // as z: h
    void* kept;             // [rows, height, width, channels * patch * patch]
    const float* schedule;  // [rows, evaluations], of FlowEvaluation
    int32_t* step;          // [rows], advanced
    const int32_t* steps;   // [rows], at most `evaluations`
    Dtype v_dtype;          // of v and kept
    int32_t rows;
    int32_t unconditional;
    int32_t evaluations;
    int32_t height;  // of the grid of patches
    int32_t width;
    int32_t channels;
    int32_t patch;
    int32_t threads;
};

inline Refusal check(const FlowUpdateParams& p) {
    if (p.rows < 1 || p.evaluations < 1 || p.unconditional < 0 || p.unconditional > p.rows) {
        return "expected rows and evaluations >= 1 and 0 <= unconditional <= rows";
    }
    if (p.height < 1 || p.width < 1 || p.channels < 1 || p.patch < 1) {
        return "expected height, width, channels and patch >= 1";
    }
    int64_t elements = 1;
    const int64_t sizes[] = {p.height, p.width, p.channels, p.patch, p.patch};
    for (const int64_t size : sizes) {
        elements *= size;
        if (elements > INT32_MAX) return "expected fewer than 2^31 elements in a row of z";
    }
    if (p.channels * p.patch * p.patch > kMaxPatchValues) return "expected channels * patch * patch <= 4096";
    if (!valid(p.v_dtype)) return expected::dtype;
    if (p.threads < 1) return expected::threads;
    if (!p.v || !p.z || !p.history || !p.kept || !p.schedule || !p.step || !p.steps) return expected::tensors;
    const uintptr_t four = p.v_dtype == Dtype::f32 ? 16 : 8;
    if (!aligned(p.v, four) || !aligned(p.kept, four)) {
        return "expected v and kept aligned to 4 elements (16 bytes in float32, 8 in bfloat16)";
    }
    if (!aligned(p.z, 8) || !aligned(p.history, 8)) return "expected z and history aligned to 8 bytes";
    if (!aligned(p.schedule, 4) || !aligned(p.step, 4) || !aligned(p.steps, 4)) {
        return "expected schedule, step and steps aligned to 4 bytes";
    }
    return nullptr;
}

}  // namespace flashjanus
