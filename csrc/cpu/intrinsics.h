// What vector.h and the kernels need from outside. Trap: no other header with inline functions (see flow_update.cpp);
// intrinsics are always inlined, so the linker never sees them.
#pragma once

#include <cstdint>
#if defined(__AVX2__)
#include <immintrin.h>
#endif

#include "host/threads.h"
#include "kernel.h"
