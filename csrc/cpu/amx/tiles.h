// Tiles of 16 rows of 64 bytes. Included inside an anonymous namespace, after vector.h and, outside, <cstdlib>.

struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// This thread's eight tile registers, all of the full size. Trap: GCC 12's _tile_loadconfig tells the compiler of the
// first 8 bytes alone.
INLINE void configure_tiles() {
    const TileConfig config;
    asm volatile("ldtilecfg %0" ::"m"(config));
}

// Trap: the compiler does not know that tile instructions read and write memory. It stands between them and other code
// on the same memory.
INLINE void tiles_meet_memory() {
    asm volatile("" ::: "memory");
}

constexpr char kNoMemory[] = "expected memory for the operands in tiles";

constexpr int32_t kTile = 16;         // rows of a tile, and columns of a product's
constexpr int32_t kTileBytes = 1024;  // of any tile

// 32 values, rounded to nearest, ties to even.
INLINE __m512i to_bf16(F32 first, F32 second) {
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}

// Memory that a thread keeps from call to call: new memory costs more than the filling of it.
class Scratch {
 public:
    ~Scratch() {
        std::free(memory_);
    }
    // So many bytes on a cache line's boundary, null where there are none. What it held before is lost.
    char* fit(int64_t bytes) {
        if (bytes <= bytes_) return memory_;
        std::free(memory_);
        memory_ = static_cast<char*>(std::aligned_alloc(64, (bytes + 63) / 64 * 64));
        bytes_ = memory_ ? bytes : 0;
        return memory_;
    }

 private:
    char* memory_ = nullptr;
    int64_t bytes_ = 0;
};
