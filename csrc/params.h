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
    misaligned_v,
    misaligned_z,
    misaligned_rows,
    isa_unavailable,
    launch_failed,
    bad_sizes,
    bad_threads,
    null_tensor,
    too_many_rows,
    head_too_large,
    too_many_channels,
    bad_groups,
    bad_images,
    too_many_blocks,
    bad_x_dtype,
    gated_bias,
    many_queries,
    row_too_long,
    bad_activation,
    ragged_tiles,
    ragged_groups,
    bf16_only,
    ragged_head,
    out_of_memory,
};

// What a row does in one evaluation: z' = z_z z + z_w w + z_h h and, where z_h, h_z or h_w is not 0, h' = h_z z + h_w
// w.
struct FlowEvaluation {
    float z_z;
    float z_w;
    float z_h;
    float h_z;
    float h_w;
    float guidance;  // 1: no unconditional velocity is read
    float rescale;   // w is drawn by this share towards the standard deviation of the conditional velocity
    float recall;    // not 0: the unconditional velocity is the one in `kept`
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

// The most rows that the matrix-vector kernels of a GPU and of weights in 4 bits take, and the most channels of an
// attention head.
inline constexpr int32_t kMaxGemvRows = 4;
inline constexpr int32_t kMaxHead = 256;

// The most channels of a normalisation that keeps some of its work on the stack, and its most groups.
inline constexpr int32_t kMaxNormChannels = 2048;
inline constexpr int32_t kMaxNormGroups = 128;

// The most channels of a row that is quantised: it waits on the stack, in float32, for its largest value.
inline constexpr int32_t kMaxQuantisedChannels = 8192;

// Below, `threads` is how many a CPU kernel may use; strides are in elements, and last dimensions are dense.

// y = act(norm(x) w^T * scale + bias) + residual, for a few rows: one pass over w. norm is RMSNorm, act(gate, up) =
// silu(gate) * up; each is left out where its argument is null or 0.
struct GemvParams {
    const void* x;      // [rows, columns]
    const float* norm;  // [columns], or null
    const void* w;  // [out, columns], of `dtype`, or int8 where scale is given; gated: [2 * out, columns], gates first
    const float* scale;    // one per row of w, or null
    const void* bias;      // [out], or null; not with gated
    const void* residual;  // [rows, out], or null
    void* y;               // [rows, out]
    Dtype dtype;           // of norm(x), w and bias
    Dtype x_dtype;         // `dtype` where norm is null
    Dtype residual_dtype;
    Dtype y_dtype;
    float eps;
    int32_t gated;
    int32_t rows;
    int32_t columns;
    int32_t out;
    int32_t threads;
};

// What stands behind a product: nothing, silu(gate) * up of its first and its last half, or the exact GELU.
enum class Activation : int32_t { none = 0, gated_silu = 1, gelu = 2 };

// y = act(norm(x) w^T * scale + bias) + residual for any number of rows, by AMX. w is in tiles: [out / 16][columns / k]
// blocks of k x 16, k = 32 in bf16 and 64 in int8, each [k / v][16][v] with v values of a column side by side in four
// bytes. With scale, w is int8 and each row of norm(x) is quantised as in cpu/quantise.h.
struct TiledLinearParams {
    const void* x;         // [rows, columns]
    const float* norm;     // [columns] of RMSNorm, or null
    const void* w;         // gated: 2 * out rows, gates first
    const float* scale;    // one per row of w, or null
    const void* bias;      // one per row of w, or null
    const void* residual;  // [rows, out], or null
    void* y;               // [rows, out]
    Dtype x_dtype;
    Dtype bias_dtype;
    Dtype residual_dtype;
    Dtype y_dtype;
    Activation act;
    float eps;
    int32_t rows;
    int32_t columns;
    int32_t out;
    int32_t threads;
};

// Columns of a weight in 4 bits that share a scale.
inline constexpr int32_t kInt4Group = 32;

// y = act(norm(x) w^T) + residual for a few rows, with w in 4 bits: one pass over w. act(gate, up) = silu(gate) * up
// where gated. Each group of 32 columns of a row of norm(x) is quantised as in cpu/quantise.h.
struct Int4LinearParams {
    const void* x;          // [rows, columns]
    const float* norm;      // [columns] of RMSNorm, or null
    const uint8_t* w;       // [out / 16][columns / 32][4][16][4]: bytes of outputs o, whose low half is column 8 i + j
                            // (i of 4, j of 4) and high half column 8 i + 4 + j, plus 8; gated: 2 * out, gates first
    const uint16_t* scale;  // [out / 16][columns / 32][16] in bf16; gated: 2 * out
    const void* residual;   // [rows, out], or null
    void* y;                // [rows, out]
    Dtype x_dtype;
    Dtype residual_dtype;
    Dtype y_dtype;
    float eps;
    int32_t gated;
    int32_t rows;
    int32_t columns;
    int32_t out;
    int32_t threads;
};

// total = x + delta (where delta is given), y = total / sqrt(mean(total^2) + eps) * weight; mean and product in
// float32. Where scale is given, y in int8: see cpu/quantise.h.
struct RmsNormParams {
    const void* x;        // [rows, channels]
    const void* delta;    // [rows, channels], or null
    const float* weight;  // [channels]
    void* total;          // [rows, channels], or null with delta
    void* y;              // [rows, channels], rows `y_stride` apart
    float* scale;         // [rows], or null
    Dtype x_dtype;        // of x and total
    Dtype delta_dtype;
    Dtype y_dtype;  // without scale
    float eps;
    int32_t rows;
    int32_t channels;
    int64_t y_stride;
    int32_t threads;
};

// total = x + delta (where delta is given), y = (total - mean) / sqrt(var + eps) * weight + bias; all in float32.
struct LayerNormParams {
    const void* x;        // [rows, channels]
    const void* delta;    // [rows, channels], or null
    const float* weight;  // [channels]
    const float* bias;    // [channels]
    void* total;          // [rows, channels], or null with delta
    void* y;              // [rows, channels]
    Dtype x_dtype;        // of x and total
    Dtype delta_dtype;
    Dtype y_dtype;
    float eps;
    int32_t rows;
    int32_t channels;
    int32_t threads;
};

// y = silu(x[:, :channels]) * x[:, channels:]. Where scale is given, y in int8: see cpu/quantise.h.
struct SiluMulParams {
    const void* x;  // [rows, 2 * channels]
    void* y;        // [rows, channels]
    float* scale;   // [rows], or null
    Dtype dtype;    // of x, and of y without scale
    int32_t rows;
    int32_t channels;
    int32_t threads;
};

// x in int8: see cpu/quantise.h.
struct QuantiseRowsParams {
    const void* x;  // [rows, channels]
    void* q;        // [rows, channels] int8
    float* scale;   // [rows]
    Dtype dtype;    // of x
    int32_t rows;
    int32_t channels;
    int32_t threads;
};

// q = rotate(q), k_cache[b, slot] = rotate(k), v_cache[b, slot] = v, of qkv = [q | k | v] by heads; half-rotation
// layout.
struct RopeKvWriteParams {
    const void* qkv;           // [batch, tokens, heads + 2 * kv_heads, 2 * half]
    const float* table;        // [positions, 2, half]: cosines, sines
    const int32_t* positions;  // [batch, tokens]
    const int32_t* slots;      // [batch, tokens]
    void* k_cache;             // [batch, slots, kv_heads, 2 * half]
    void* v_cache;
    void* q;  // [batch, tokens, heads, 2 * half]
    Dtype dtype;
    int32_t batch;
    int32_t tokens;
    int32_t heads;
    int32_t kv_heads;
    int32_t half;
    int64_t cache_batch_stride;
    int64_t cache_slot_stride;
    int32_t threads;
};

// One query a row: o = softmax(scale q K^T) V over the keys kv_start[b] <= j < kv_end[b] and j = slots[b].
struct DecodeAttentionParams {
    const void* q;  // [batch, queries, heads, head]
    const void* k;  // [batch, keys, kv_heads, head]
    const void* v;
    const int32_t* kv_start;  // [batch]; null with kv_end and slots: every query sees every key; on a CPU
    const int32_t* kv_end;    // [batch, queries]
    const int32_t* slots;     // [batch, queries]
    void* o;                  // [batch, queries, heads, head]
    Dtype dtype;
    float scale;
    int32_t batch;
    int32_t queries;  // of a row; on a GPU 1
    int32_t keys;
    int32_t heads;
    int32_t kv_heads;
    int32_t head;
    int64_t batch_stride;  // of k and v
    int64_t key_stride;
    int32_t threads;
};

// y = depthwise7x7(x) + bias (zero padding 3), divided by sqrt(mean over channels of its square + eps), times norm; all
// in float32.
struct DepthwiseNormParams {
    const void* x;       // [batch, height, width, channels]
    const void* weight;  // [7, 7, channels]
    const void* bias;    // [channels], or null
    const float* norm;   // [channels]
    void* y;             // [batch, height, width, channels]
    Dtype x_dtype;
    Dtype weight_dtype;  // of weight and bias
    Dtype y_dtype;
    float eps;
    int32_t batch;
    int32_t height;
    int32_t width;
    int32_t channels;
    int32_t threads;
};

// y = gelu(x) (exact, by erf), sumsq = the sum over positions of y^2 as stored.
struct GeluGrnStatsParams {
    const void* x;  // [batch, positions, channels]
    void* y;        // [batch, positions, channels]
    float* sumsq;   // [batch, channels]
    Dtype dtype;    // of x and y
    int32_t batch;
    int32_t positions;
    int32_t channels;
    int32_t threads;
};

// token = a draw from softmax(logits / temperature) after repetition penalty, top-k and top-p, or the argmax at
// temperature 0; seen[token] = 1, step += 1. Every row for itself, by its uniform number of this step, or its last one.
struct SampleTokenParams {
    const void* logits;        // [rows, vocab]
    const float* temperature;  // [rows]
    const int32_t* top_k;      // [rows], 0 for all
    const float* top_p;        // [rows], 1 for all
    const float* penalty;      // [rows], of the logits of tokens that were seen
    const float* uniforms;     // [rows, steps], in [0, 1)
    uint8_t* seen;             // [rows, vocab]
    int32_t* token;            // [rows]
    int32_t* step;             // [rows], advanced
    Dtype dtype;
    int32_t rows;
    int32_t vocab;
    int32_t steps;
    int32_t threads;
};

// n = sqrt(sumsq) / (mean over channels of sqrt(sumsq) + 1e-6), o = bias + (weight * n + 1) * y.
struct GrnApplyParams {
    const void* y;        // [batch, positions, channels]
    const float* sumsq;   // [batch, channels]
    const float* weight;  // [channels]
    const float* bias;    // [channels]
    void* o;              // [batch, positions, channels]
    Dtype dtype;          // of y and o
    int32_t batch;
    int32_t positions;
    int32_t channels;
    int32_t threads;
};

// o[b] = (x[b] + y[b]) * (1 + scale) + shift, where scale | shift = table[r, min(step[r], steps - 1)] and r = b, or
// b - images for b >= images.
struct ResidualModulateParams {
    const void* y;        // [batch, positions, channels]
    const void* x;        // [batch, positions, channels]
    const float* table;   // [images, steps, 2 * channels]
    const int32_t* step;  // [images]
    void* o;              // [batch, positions, channels]
    Dtype y_dtype;
    Dtype x_dtype;
    Dtype o_dtype;
    int32_t batch;
    int32_t images;
    int32_t positions;
    int32_t channels;
    int32_t steps;
    int64_t image_stride;  // of the table
    int64_t step_stride;
    int32_t threads;
};

// What a row does in one evaluation: recalls what its slots hold, or keeps what the layers added in one of them.
struct StepCacheLine {
    float recall;  // not 0: y is recalled
    float slot;    // 0 or 1: keeps total - x; below 0: neither does
    float w_0;     // where it is 0, slot_0 is not read
    float w_1;
};

// y[b] = total[b] and slot[b] = total[b] - x[r]; or y[b] = x[r] + w_0 * slot_0[b] + w_1 * slot_1[b], where the line
// lines[r, min(step[r], evaluations - 1)] recalls or there is no total; r = b, or b - images for b >= images.
struct StepCacheParams {
    const void* x;               // [images, positions, channels]
    const void* total;           // [batch, positions, channels], or null
    void* slot_0;                // [batch, positions, channels]
    void* slot_1;                // [batch, positions, channels]
    const StepCacheLine* lines;  // [images, evaluations]
    const int32_t* step;         // [images]
    void* y;                     // [batch, positions, channels]
    Dtype x_dtype;               // of x, total and y
    Dtype slot_dtype;
    int32_t batch;
    int32_t images;
    int32_t positions;
    int32_t channels;
    int32_t evaluations;
    int32_t threads;
};

// y = (x - mean) / sqrt(var + eps) * weight + bias, with the mean and variance of each image's groups of channels, and
// where silu is not 0, y = silu(y); all in float32.
struct GroupNormSiluParams {
    const void* x;        // [batch, positions, channels]
    const float* weight;  // [channels]
    const float* bias;    // [channels]
    void* y;              // [batch, positions, channels]
    Dtype dtype;          // of x and y
    float eps;
    int32_t silu;
    int32_t batch;
    int32_t positions;
    int32_t channels;
    int32_t groups;
    int32_t threads;
};

}  // namespace flashjanus
