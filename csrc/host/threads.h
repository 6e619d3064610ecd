// How many threads a kernel takes, and how its loops are spread over them. Declarations only: what kernels inline is in
// parallel.h.
#pragma once

#include <cstdint>

namespace flashjanus::cpu {

// How a loop is spread: over the calling thread alone, or over all threads that it may have, even if there are fewer
// parts than threads. Trap: GNU's runtime ends the threads that a smaller team does not need, and makes new ones for
// the next.
struct Team {
    int32_t threads;
    int64_t parts;
    bool shared;  // threads take many small parts one by one, since some may be waiting for their cores
};

// The team for a loop of `count` independent items that would keep one thread busy for `nanoseconds`, roughly.
Team team_for(int32_t threads, int64_t count, double nanoseconds);

// Says that the calling thread is one of a team: how long it waits for its core counts. First in every parallel region.
void join_team();

// True while other processes compete for the cores that this thread's teams of up to `threads` threads run on. A thread
// that waits then gives up its core at once, and a loop is worth more threads only if it takes milliseconds.
bool pressed(int32_t threads);

// For tests: from now on, pressed() is `press` (0 or 1) and `worth` nanoseconds of work are worth another thread. -1
// restores the measured value and the default.
void force_teams(int32_t press, double worth);

}  // namespace flashjanus::cpu
