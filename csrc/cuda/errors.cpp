#include "cuda/cuda.h"
#include "cuda/launch.h"

namespace flashjanus::cuda {

const char* last_error() {
    return cudaGetErrorString(last_launch);
}

}  // namespace flashjanus::cuda
