// What the header of every kernel builds on: types of arguments, what a check says, limits that kernels share.
// A kernel takes one plain struct of raw pointers and sizes (and, on a GPU, a stream). The struct and its check are in
// the kernel's own header, of which generate.py makes lists and bindings. In all of them `threads` is how many a CPU
// kernel may use, strides are in elements, and last dimensions are dense.
#pragma once

#include <cstdint>

namespace flashjanus {

enum class Dtype : int32_t { f32 = 0, bf16 = 1 };

// Null if all is well, else a string literal that says what was expected.
using Refusal = const char*;

// The most rows that the matrix-vector kernels of a GPU and of weights in 4 bits take.
inline constexpr int32_t kMaxGemvRows = 4;

// The most channels of a normalization that keeps some of its work on the stack.
inline constexpr int32_t kMaxNormChannels = 2048;

// The most channels of a row that is quantized: it waits on the stack, in float32, until its largest value is known.
inline constexpr int32_t kMaxQuantizedChannels = 8192;

// What several kernels expect.
namespace expected {
constexpr char sizes[] = "expected every size >= 1, and heads a multiple of kv_heads";
constexpr char dtype[] = "expected v_dtype 0 (float32) or 1 (bfloat16)";
constexpr char threads[] = "expected threads >= 1";
constexpr char tensors[] = "expected non-null pointers to all tensors that are not optional";
constexpr char images[] = "expected images <= batch <= 2 * images";
constexpr char few_rows[] = "expected at most 4 rows";
constexpr char norm_channels[] = "expected at most 2048 channels";
constexpr char quantized_channels[] = "expected at most 8192 channels where scale is given";
}  // namespace expected

// Trap: files compiled per instruction set see these and the checks (see cpu/flow_update.cpp). They must not call a
// check, which only the dispatcher and the CUDA kernels do.
inline __attribute__((always_inline)) bool aligned(const void* pointer, uintptr_t bytes) {
    return reinterpret_cast<uintptr_t>(pointer) % bytes == 0;
}

inline __attribute__((always_inline)) bool valid(Dtype dtype) {
    return dtype == Dtype::f32 || dtype == Dtype::bf16;
}

}  // namespace flashjanus
