// Memory that a thread keeps from call to call, because allocating it costs more than filling it.
#pragma once

#include <cstdint>

namespace flashjanus::cpu {

// `floats` numbers that begin on a cache line; the next call on the same thread may move them and lose their values.
// Throws std::bad_alloc, which Python sees as a MemoryError; so not in a parallel region.
float* scratch(int64_t floats);

}  // namespace flashjanus::cpu
