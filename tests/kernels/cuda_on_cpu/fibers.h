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
constexpr size_t kGuard = 64;  // bytes after a block's shared memory
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

// Threads, warps and blocks take turns from the first to the last, or from the last to the first.
inline bool backwards = false;

inline unsigned in_turn(unsigned i, unsigned count) {
    return backwards ? count - 1 - i : i;
}

// Runs every thread of a warp until all of them stand at a barrier of more than the warp, or have ended.
template <class Resume>
void run_warp(unsigned first, unsigned last, const Resume& resume) {
    do {
        for (unsigned i = 0; i < last - first; ++i) {
            const unsigned thread = first + in_turn(i, last - first);
            if (threads[thread].state == State::ready) resume(thread);
        }
    } while (release(first, last, State::at_warp_barrier));
}

// Runs blocks first .. first + cluster - 1 to their ends; false where they hang or write past their shared memory.
// What may run ahead does so as far as it can: a warp to a barrier of its block, a block to one of its cluster.
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
    bool intact = true;
    const auto resume = [&](unsigned thread) {
        current = thread;
        bring(thread / size);
        select(first + thread / size, thread % size);
        swapcontext(&scheduler, &threads[thread].context);
        if (threads[thread].state != State::done || --alive[resident]) return;
        intact = intact && guard_intact(place + bytes);
        std::memset(place, kPoison, bytes);
    };
    const unsigned warps = (size + kWarp - 1) / kWarp;
    do {
        for (unsigned i = 0; i < cluster; ++i) {
            const unsigned begin = in_turn(i, cluster) * size, end = begin + size;
            do {
                for (unsigned j = 0; j < warps; ++j) {
                    const unsigned warp = begin + in_turn(j, warps) * kWarp;
                    run_warp(warp, std::min(warp + kWarp, end), resume);
                }
            } while (release(begin, end, State::at_block_barrier));
        }
    } while (release(0, cluster * size, State::at_cluster_barrier));
    return intact && std::all_of(alive.begin(), alive.end(), [](unsigned left) { return left == 0; });
}

}  // namespace fibers
