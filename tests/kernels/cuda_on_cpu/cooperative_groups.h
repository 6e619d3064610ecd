// Clusters, see cuda_runtime.h.
#pragma once

#include "fibers.h"

namespace cooperative_groups {

struct cluster_group {
    static unsigned block_rank() {
        return fibers::current / fibers::block_size;
    }
    static unsigned num_blocks() {
        return static_cast<unsigned>(fibers::shared.size());
    }
    static void sync() {
        fibers::wait(fibers::State::at_cluster_barrier);
    }
    template <class T>
    static T* map_shared_rank(T* here, unsigned rank) {
        return reinterpret_cast<T*>(fibers::memory_of(rank) + (reinterpret_cast<char*>(here) - fibers::place));
    }
};

inline cluster_group this_cluster() {
    return {};
}

}  // namespace cooperative_groups
