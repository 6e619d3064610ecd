// What the files of this folder share. They are the only ones that see pybind11.
#pragma once

#include <pybind11/pybind11.h>

#include <string>

#include "check.h"
#include "params.h"

namespace flashjanus {

template <class T>
T* pointer(uintptr_t address) {
    return reinterpret_cast<T*>(address);
}

inline CfgEulerParams cfg_euler_params(uintptr_t v, uintptr_t z, uintptr_t guidance, uintptr_t step, uintptr_t steps,
                                       int32_t v_dtype, int32_t rows, int32_t unconditional, int32_t height,
                                       int32_t width, int32_t channels, int32_t patch) {
    return {pointer<const void>(v),
            pointer<float>(z),
            pointer<const float>(guidance),
            pointer<int32_t>(step),
            pointer<const int32_t>(steps),
            static_cast<Dtype>(v_dtype),
            rows,
            unconditional,
            height,
            width,
            channels,
            patch};
}

inline std::string describe(const CfgEulerParams& p) {
    return "rows=" + std::to_string(p.rows) + ", unconditional=" + std::to_string(p.unconditional) +
           ", height=" + std::to_string(p.height) + ", width=" + std::to_string(p.width) +
           ", channels=" + std::to_string(p.channels) + ", patch=" + std::to_string(p.patch) +
           ", v_dtype=" + std::to_string(static_cast<int32_t>(p.v_dtype));
}

// Register the CUDA half: bindings/cuda.cpp in a CUDA build, bindings/no_cuda.cpp otherwise.
void bind_cuda(pybind11::module_& module);

}  // namespace flashjanus
