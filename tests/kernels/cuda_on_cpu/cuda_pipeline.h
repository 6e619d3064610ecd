// Asynchronous copies to shared memory, which land as late as they may: see cuda_runtime.h.
#pragma once

#include "fibers.h"

inline void __pipeline_memcpy_async(void* to, const void* from, size_t bytes) {
    fibers::threads[fibers::current].copies.back().push_back({to, from, bytes});
}

inline void __pipeline_commit() {
    fibers::threads[fibers::current].copies.push_back({});
}

// Lands all groups but the last `pending` committed ones.
inline void __pipeline_wait_prior(unsigned pending) {
    auto& copies = fibers::threads[fibers::current].copies;
    for (size_t groups = copies.size() - 1; groups > pending; --groups) {
        for (const fibers::Copy& copy : copies.front()) std::memcpy(copy.to, copy.from, copy.bytes);
        copies.erase(copies.begin());
    }
}
