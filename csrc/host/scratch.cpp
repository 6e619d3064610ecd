#include "host/scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace flashjanus::cpu {

float* scratch(int64_t floats) {
    struct Free {
        void operator()(float* memory) const {
            std::free(memory);
        }
    };
    thread_local std::unique_ptr<float, Free> memory;
    thread_local int64_t held = 0;
    if (floats > held) {
        memory.reset();
        held = 0;
        memory.reset(static_cast<float*>(std::aligned_alloc(64, (floats * sizeof(float) + 63) / 64 * 64)));
        if (!memory) throw std::bad_alloc();
        held = floats;
    }
    return memory.get();
}

}  // namespace flashjanus::cpu
