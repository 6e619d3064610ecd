#include "host/scratch.h"

#include <cstdlib>
#include <memory>
#include <new>

namespace flashjanus::cpu {

char* scratch(int64_t bytes) {
    struct Free {
        void operator()(char* memory) const {
            std::free(memory);
        }
    };
    thread_local std::unique_ptr<char, Free> memory;
    thread_local int64_t held = 0;
    if (bytes > held) {
        memory.reset();  // before the larger block is asked for
        memory.reset(static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64)));
        held = memory ? bytes : 0;
    }
    return memory.get();
}

float* scratch_floats(int64_t floats) {
    char* memory = scratch(floats * static_cast<int64_t>(sizeof(float)));
    if (!memory) throw std::bad_alloc();
    return reinterpret_cast<float*>(memory);
}

}  // namespace flashjanus::cpu
