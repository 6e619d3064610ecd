// The blocks of a cluster as fibers: who runs when, and whose shared memory is in place.
#pragma once

#include <ucontext.h>

#include <algorithm>
#include <cstdint>
#include <cstring>
#include <functional>
#include <map>
#include <vector>

namespace fibers {

constexpr unsigned kWarp = 32;
constexpr size_t kMaxShared = 227 * 1024;
constexpr size_t kGuard = 64;  // bytes behind a block's shared memory
constexpr char kPoison = char(0xff);
enum class State { ready, at_warp_barrier, at_block_barrier, at_cluster_barrier, done };

struct Copy {
    void* to;
    const void* from;
    size_t bytes;
};

struct Fiber {
    ucontext_t context;
    std::vector<char> stack = std::vector<char>(32 * 1024, kPoison);
    State state = State::ready;
    uint64_t shuffled = 0;
    std::vector<std::vector<Copy>> copies = {{}};  // groups of asynchronous ones; the last is open
};

inline std::vector<Fiber> threads;             // of the running cluster, block by block
inline std::vector<std::vector<char>> shared;  // of each block while it does not run
inline std::vector<unsigned> alive;            // threads of each block
inline char* place;                            // where the running block's shared memory lies
inline unsigned block_size, current, resident;
inline ucontext_t scheduler;
inline std::function<void()> body;

inline void enter() {
    body();
    threads[current].state = State::done;
}

inline void wait(State barrier) {
    const unsigned self = current;
    threads[self].state = barrier;
    swapcontext(&threads[self].context, &scheduler);
}

// Lets threads first..last pass if all of them stand at the barrier.
inline bool release(unsigned first, unsigned last, State barrier) {
    for (unsigned i = first; i < last; ++i) {
        if (threads[i].state != barrier) return false;
    }
    for (unsigned i = first; i < last; ++i) threads[i].state = State::ready;
    return true;
}

// Brings a block's shared memory to its place, and puts the one that was there away.
inline void bring(unsigned block) {
    if (block == resident) return;
    std::memcpy(shared[resident].data(), place, shared[resident].size());
    std::memcpy(place, shared[block].data(), shared[block].size());
    resident = block;
}

// A block's shared memory, wherever it lies.
inline char* memory_of(unsigned block) {
    return block == resident ? place : shared[block].data();
}

inline bool guard_intact(const char* guard) {
    return std::all_of(guard, guard + kGuard, [](char byte) { return byte == kPoison; });
}

// Runs blocks first .. first + cluster - 1 to their ends; false where they hang or write behind their shared memory.
template <class Select>
bool run(unsigned first, unsigned cluster, unsigned size, void* at, size_t bytes, const Select& select) {
    block_size = size;
    place = static_cast<char*>(at);
    resident = 0;
    threads = std::vector<Fiber>(cluster * size);
    alive.assign(cluster, size);
    shared.assign(cluster, std::vector<char>(bytes + kGuard, kPoison));
    std::memcpy(place, shared[0].data(), bytes + kGuard);
    for (Fiber& fiber : threads) {
        getcontext(&fiber.context);
        fiber.context.uc_stack = {fiber.stack.data(), 0, fiber.stack.size()};
        fiber.context.uc_link = &scheduler;
        makecontext(&fiber.context, enter, 0);
    }
    for (bool progress = true; progress;) {
        for (current = 0; current < threads.size(); ++current) {
            if (threads[current].state != State::ready) continue;
            bring(current / size);
            select(first + current / size, current % size);
            swapcontext(&scheduler, &threads[current].context);
            if (threads[current].state != State::done || --alive[resident]) continue;
            if (!guard_intact(place + bytes)) return false;
            std::memset(place, kPoison, bytes);
        }
        progress = release(0, cluster * size, State::at_cluster_barrier);
        for (unsigned block = 0; block < cluster; ++block) {
            const unsigned begin = block * size, end = begin + size;
            progress |= release(begin, end, State::at_block_barrier);
            for (unsigned i = begin; i < end; i += kWarp) {
                progress |= release(i, std::min(i + kWarp, end), State::at_warp_barrier);
            }
        }
    }
    return std::all_of(alive.begin(), alive.end(), [](unsigned left) { return left == 0; });
}

}  // namespace fibers
