// Tiles of 16 rows of 64 bytes. Included inside an anonymous namespace, after vector.h.

struct alignas(64) TileConfig {
    uint8_t palette = 1;
    uint8_t start_row = 0;
    uint8_t reserved[14] = {};
    uint16_t row_bytes[16] = {64, 64, 64, 64, 64, 64, 64, 64};
    uint8_t rows[16] = {16, 16, 16, 16, 16, 16, 16, 16};
};

// This thread's eight tile registers, all of full size. Trap: GCC 12's _tile_loadconfig tells the compiler only about
// the first 8 bytes.
INLINE void configure_tiles() {
    const TileConfig config;
    asm volatile("ldtilecfg %0" ::"m"(config));
}

// Trap: the compiler does not know that tile instructions read and write memory. This barrier stands between them and
// other code on the same memory.
INLINE void tiles_meet_memory() {
    asm volatile("" ::: "memory");
}

constexpr char kNoMemory[] = "expected memory for the operands in tiles";

constexpr int32_t kTile = 16;         // rows of a tile, and columns of a product's
constexpr int32_t kTileBytes = 1024;  // of any tile
constexpr int32_t kTileSums = kTile * kTile;

// A product's sums, in tiles 0 to 3. Memory holds tile 0 at `upper`, tile 2 at `lower`, and tiles 1 and 3 `right`
// values after these; a tile's rows are `stride` bytes apart.
INLINE void zero_sums() {
    _tile_zero(0);
    _tile_zero(1);
    _tile_zero(2);
    _tile_zero(3);
}

INLINE void load_sums(const float* upper, const float* lower, int64_t right, int64_t stride) {
    _tile_loadd(0, upper, stride);
    _tile_loadd(1, upper + right, stride);
    _tile_loadd(2, lower, stride);
    _tile_loadd(3, lower + right, stride);
}

INLINE void store_sums(float* upper, float* lower, int64_t right, int64_t stride) {
    _tile_stored(0, upper, stride);
    _tile_stored(1, upper + right, stride);
    _tile_stored(2, lower, stride);
    _tile_stored(3, lower + right, stride);
}

// 32 values, rounded to nearest, ties to even.
INLINE __m512i to_bf16(F32 first, F32 second) {
    return (__m512i)_mm512_cvtne2ps_pbh((__m512)second, (__m512)first);
}
