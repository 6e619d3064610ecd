// csrc/cuda/cfg_euler.cu behind a C function, for ctypes.
#include "cuda/cfg_euler.cu"

extern "C" int32_t cfg_euler(const void* v, float* z, const float* guidance, int32_t* step, const int32_t* steps,
                             int32_t v_dtype, int32_t rows, int32_t unconditional, int32_t height, int32_t width,
                             int32_t channels, int32_t patch) {
    const flashjanus::CfgEulerParams params{
        v,      z,     guidance, step, steps, static_cast<flashjanus::Dtype>(v_dtype), rows, unconditional,
        height, width, channels, patch};
    return static_cast<int32_t>(flashjanus::cuda::cfg_euler(params, nullptr));
}
