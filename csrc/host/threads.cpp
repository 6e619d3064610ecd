// Adapts the kernels' threads to the load on the machine. Where other processes compete for the cores, threads that
// wait for each other by spinning keep each other from running: a loop of microseconds then takes as long as a
// scheduler's time slice. While kernels run, this file therefore measures how long the threads of this process's teams
// wait for their cores. If that is long, small loops stay on the calling thread, and the runtime's threads give up
// their cores at once.
#include "host/threads.h"

#include <atomic>

#ifdef __linux__
#include <fcntl.h>
#include <pthread.h>
#include <time.h>
#include <unistd.h>

#include <condition_variable>
#include <cstdlib>
#include <cstring>
#include <mutex>
#include <thread>
#include <vector>
#endif
#ifdef _OPENMP
#include <omp.h>
#endif

namespace flashjanus::cpu {
namespace {

// The least work that is worth another thread, in nanoseconds: where threads spin for each other, and where one may
// have to wait for a time slice.
constexpr double kWorth = 2e3, kWorthPressed = 8e6;
std::atomic<double> forced_worth{-1.0};

}  // namespace

#ifdef __linux__
namespace {

constexpr int64_t kMillisecond = 1000000;
constexpr int64_t kBetween = 4 * kMillisecond;  // between two looks at the scheduler's counters
constexpr int64_t kWindow = 40 * kMillisecond;  // over which they are compared
constexpr double kShare = 0.4;  // of the window that threads wait for cores: less costs less than doing without threads
constexpr int64_t kHold = 50 * kMillisecond;           // pressed for this long, then comes a trial
constexpr int64_t kLongestHold = 3200 * kMillisecond;  // a failed trial doubles the hold, up to this
constexpr int64_t kTrial = 200 * kMillisecond;  // a trial succeeds after this long, or the last hold, without press
constexpr int64_t kGrace = 40 * kMillisecond;   // of a trial, until the scheduler has spread woken threads
constexpr size_t kMostMembers = 16;             // watched threads: each look costs one or two microseconds per thread

int64_t now() {
    timespec time;
    clock_gettime(CLOCK_MONOTONIC, &time);
    return time.tv_sec * 1000 * kMillisecond + time.tv_nsec;
}

// GNU's runtime lets a waiting thread spin for milliseconds or, if it manages more threads than there are cores, for
// microseconds (see GOMP_SPINCOUNT in its manual). While this object exists, it manages additional threads, which
// sleep.
class Ballast {
 public:
    explicit Ballast(int32_t threads) : thread_([this, threads] { hold(threads); }) {
    }
    ~Ballast() {
        release();
        thread_.join();
    }
    void release() {
        const std::lock_guard<std::mutex> lock(mutex_);
        released_ = true;
        changed_.notify_all();
    }

 private:
    void hold(int32_t threads) {
        (void)threads;
#ifdef _OPENMP
        const int32_t missing = omp_get_num_procs() - threads + 1;
#pragma omp parallel num_threads(1 + (missing > 1 ? missing : 1))
        join_nothing();
#endif
        std::unique_lock<std::mutex> lock(mutex_);
        changed_.wait(lock, [this] { return released_; });
    }
    // The compiler would drop an empty region.
    static void join_nothing() {
        asm volatile("" ::: "memory");
    }

    std::mutex mutex_;
    std::condition_variable changed_;
    bool released_ = false;
    std::thread thread_;  // last: it uses the others
};

// One per process. It is never destroyed, because threads may end after the process has begun to.
struct Watch {
    std::mutex mutex;
    std::vector<int> members;             // the scheduler's counters of watched threads, as open files
    std::atomic<uint32_t> changes{1};     // of threads that were members
    std::atomic<uint32_t> generation{1};  // of members: none of an older one counts
    std::atomic<bool> pressed{false};
    std::atomic<int64_t> next{0};   // when to look again
    int64_t start = 0, waited = 0;  // of the window
    int64_t until = 0, released = 0, held = kHold;
    Ballast* ballast = nullptr;

    // Nanoseconds for which the watched threads were ready to run but did not run.
    int64_t waiting() const {
        int64_t total = 0;
        for (const int file : members) {
            char text[96];
            const ssize_t length = pread(file, text, sizeof text - 1, 0);
            if (length <= 0) continue;
            text[length] = 0;
            if (const char* second = std::strchr(text, ' ')) total += std::strtoll(second, nullptr, 10);
        }
        return total;
    }
    void begin_window(int64_t at) {
        start = at;
        waited = waiting();
    }
    void look(int64_t at, int32_t threads) {
        if (pressed) {
            if (at < until) return;
            pressed = false;
            released = at;
            ballast->release();
            next = at + kGrace;
            start = 0;
            return;
        }
        if (start == 0) return begin_window(at);
        const int64_t passed = at - start, more = waiting() - waited;
        if (more >= kShare * (passed > kWindow ? passed : kWindow)) {
            const int64_t twice = 2 * held < kLongestHold ? 2 * held : kLongestHold;
            held = at - released > (held > kTrial ? held : kTrial) ? kHold : twice;
            until = at + held;
            press(threads);
        } else if (passed > kWindow) {
            begin_window(at);
        }
    }
    void press(int32_t threads) {
        delete ballast;
        ballast = new Ballast(threads);
        pressed = true;
    }
    void forget_members() {
        for (const int file : members) close(file);
        members.clear();
        ++generation;
        ++changes;
    }
};

Watch& watch();

// A thread whose waiting counts.
class Member {
 public:
    ~Member() {
        Watch& all = watch();
        const std::lock_guard<std::mutex> lock(all.mutex);
        if (generation_ != all.generation) return;
        for (size_t i = 0; i < all.members.size(); ++i) {
            if (all.members[i] != file_) continue;
            all.members.erase(all.members.begin() + static_cast<int64_t>(i));
            close(file_);
            ++all.changes;
            all.begin_window(now());
            return;
        }
    }
    void join() {
        Watch& all = watch();
        if (generation_ == all.generation.load(std::memory_order_relaxed)) return;
        const std::lock_guard<std::mutex> lock(all.mutex);
        generation_ = all.generation;
        file_ = -1;
        if (all.members.size() == kMostMembers) return;
        file_ = open("/proc/thread-self/schedstat", O_RDONLY | O_CLOEXEC);
        if (file_ < 0) return;
        all.members.push_back(file_);
        all.begin_window(now());
    }

 private:
    uint32_t generation_ = 0;
    int file_ = -1;
};

void before_fork() {
    Watch& all = watch();
    all.mutex.lock();
    delete all.ballast;  // the child would count its threads, which do not exist there
    all.ballast = nullptr;
    all.pressed = false;
}
void after_fork_in_parent() {
    watch().mutex.unlock();
}
void after_fork_in_child() {
    watch().forget_members();  // the parent's threads
    watch().mutex.unlock();
}

Watch& watch() {
    static Watch* const all = [] {
        pthread_atfork(before_fork, after_fork_in_parent, after_fork_in_child);
        return new Watch;
    }();
    return *all;
}

thread_local Member this_thread;

// Watches every thread of this thread's team, even if the kernels' own loops are too small to use it.
void watch_team(int32_t threads) {
    thread_local uint32_t changes = 0;
    thread_local int32_t size = 0;
    const uint32_t latest = watch().changes.load(std::memory_order_relaxed);
    if (changes == latest && size >= threads) return;
    changes = latest;
    size = threads;
#pragma omp parallel num_threads(threads)
    join_team();
}

}  // namespace

void join_team() {
    this_thread.join();
}

bool pressed(int32_t threads) {
    if (threads <= 1) return false;
    Watch& all = watch();
    watch_team(threads);
    const int64_t at = now();
    if (at >= all.next.load(std::memory_order_relaxed) && all.mutex.try_lock()) {
        all.next = at + kBetween;
        all.look(at, threads);
        all.mutex.unlock();
    }
    return all.pressed.load(std::memory_order_relaxed);
}

void force_teams(int32_t press, double worth) {
    Watch& all = watch();
    const std::lock_guard<std::mutex> lock(all.mutex);
    constexpr int64_t never = INT64_MAX;
    all.next = press < 0 ? 0 : never;
    all.until = 0;
    all.pressed = false;
    delete all.ballast;
    all.ballast = nullptr;
    if (press > 0) all.press(1);
    forced_worth = worth;
}
#else
void join_team() {
}
bool pressed(int32_t) {
    return false;
}
void force_teams(int32_t, double worth) {
    forced_worth = worth;
}
#endif

Team team_for(int32_t threads, int64_t count, double nanoseconds) {
    const bool shared = pressed(threads);
    const double worth = forced_worth >= 0.0 ? forced_worth.load() : shared ? kWorthPressed : kWorth;
    int64_t parts = threads < count ? threads : count;
    if (nanoseconds < worth * parts) parts = static_cast<int64_t>(nanoseconds / worth);
    if (parts < 2) return {1, 1, shared};
    if (shared) parts = 8 * parts < count ? 8 * parts : count;
    return {threads, parts, shared};
}

}  // namespace flashjanus::cpu
