// Memory that a thread keeps from call to call, because allocating it costs more than filling it.
#pragma once

#include <cstdint>

namespace flashjanus::cpu {

// `bytes` bytes that begin on a cache line, or null if memory is short. The next call on the same thread may move them
// and lose their contents.
char* scratch(int64_t bytes);

// The same for `floats` numbers, but memory that is short throws std::bad_alloc, which becomes a MemoryError in Python.
// A parallel region cannot pass that on, so call it before the region.
float* scratch_floats(int64_t floats);

}  // namespace flashjanus::cpu
