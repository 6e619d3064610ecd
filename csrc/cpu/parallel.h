// Loops over independent items: the bits that they write do not depend on the number of threads. Included inside an
// anonymous namespace, after vector.h.

// Not inline, so that a kernel's loop exists only once.
template <class F>
__attribute__((noinline)) void run_part(const F& f, int64_t count, int64_t part, int64_t parts) {
    f(count * part / parts, count * (part + 1) / parts);
}

// f(first, last) for parts of 0 .. count - 1, on as many of `threads` as the work is worth. `nanoseconds` is roughly
// the time of all of it on one thread.
template <class F>
INLINE void parallel_parts(int32_t threads, int64_t count, double nanoseconds, const F& f) {
    const Team team = team_for(threads, count, nanoseconds);
    if (team.threads == 1) return run_part(f, count, 0, 1);
    const int64_t parts = team.parts;
#pragma omp parallel num_threads(team.threads)
    {
        join_team();
        if (team.shared) {
#pragma omp for schedule(dynamic) nowait
            for (int64_t part = 0; part < parts; ++part) run_part(f, count, part, parts);
        } else {
#pragma omp for schedule(static) nowait
            for (int64_t part = 0; part < parts; ++part) run_part(f, count, part, parts);
        }
    }
}

// f(i) for i = 0 .. count - 1, likewise.
template <class F>
INLINE void parallel_for(int32_t threads, int64_t count, double nanoseconds, const F& f) {
    parallel_parts(threads, count, nanoseconds, [&](int64_t first, int64_t last) {
        for (int64_t i = first; i < last; ++i) f(i);
    });
}
