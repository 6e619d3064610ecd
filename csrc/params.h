// What the host, the device and the bindings share: one plain struct of arguments per kernel, and status codes.
// Every entry point takes raw pointers (and a stream on a GPU), allocates nothing and returns a Status.
#pragma once

#include <cstdint>

namespace flashjanus {

enum class Dtype : int32_t { f32 = 0, bf16 = 1 };

// The most values (channels * patch * patch) that a token may hold.
inline constexpr int32_t kMaxPatchValues = 4096;

enum class Status : int32_t {
    ok = 0,
    bad_rows,
    bad_grid,
    too_large,
    patch_too_large,
    bad_dtype,
    null_pointer,
    misaligned_v,
    misaligned_z,
    misaligned_rows,
    isa_unavailable,
    launch_failed,
};

// For every image row r with step[r] < steps[r]: z[r] += velocity / steps[r], then step[r] += 1; other rows are left
// untouched. velocity = unpatchify(v[r]) and, where r < unconditional,
// guidance * unpatchify(v[r]) - (guidance - 1) * unpatchify(v[rows + r]).
struct CfgEulerParams {
    const void* v;          // [rows + unconditional, height, width, channels * patch * patch], channel-major patches
    float* z;               // [rows, channels, height * patch, width * patch], in place
    const float* guidance;  // [rows]
    int32_t* step;          // [rows], advanced
    const int32_t* steps;   // [rows]
    Dtype v_dtype;
    int32_t rows;
    int32_t unconditional;
    int32_t height;  // of the grid of patches
    int32_t width;
    int32_t channels;
    int32_t patch;
};

}  // namespace flashjanus
