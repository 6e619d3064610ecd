// A register of float32 lanes, loaded from and stored to float32 or bf16. GCC and clang vector extensions: one source
// for every instruction set, but for the conversions. Included inside an anonymous namespace (see the trap in
// flow_update.cpp), so intrinsics.h comes first, outside.

// Trap: no wider than a register. GCC compares wider vectors lane by lane, and keeps sums of them in memory.
#if defined(__AVX512F__)
constexpr int32_t kLanes = 16;
#elif defined(__AVX2__)
constexpr int32_t kLanes = 8;
#else
constexpr int32_t kLanes = 4;
#endif

typedef float F32 __attribute__((vector_size(4 * kLanes)));
typedef int32_t I32 __attribute__((vector_size(4 * kLanes)));
typedef uint32_t U32 __attribute__((vector_size(4 * kLanes)));
typedef uint16_t U16 __attribute__((vector_size(2 * kLanes)));

using bf16 = uint16_t;  // the upper half of a float32

#define INLINE inline __attribute__((always_inline))

// f(T{}), with T the type of a tensor's elements.
template <class F>
INLINE void with_type(Dtype dtype, const F& f) {
    if (dtype == Dtype::f32) return f(float{});
    f(bf16{});
}

INLINE F32 splat(float x) {
    return x - F32{};  // folds to x; x + 0 does not, because it changes -0
}

INLINE F32 load(const float* from) {
    F32 v;
    __builtin_memcpy(&v, from, sizeof v);
    return v;
}

// Zero-extended and shifted up: a bf16 is the upper half of a float32.
INLINE F32 load(const bf16* from) {
#if defined(__AVX512F__)
    const __m256i half = _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
    return (F32)_mm512_slli_epi32(_mm512_cvtepu16_epi32(half), 16);
#elif defined(__AVX2__)
    const __m128i half = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return (F32)_mm256_slli_epi32(_mm256_cvtepu16_epi32(half), 16);
#else
    U16 half;
    __builtin_memcpy(&half, from, sizeof half);
    return (F32)(__builtin_convertvector(half, U32) << 16);
#endif
}

INLINE F32 load(const int8_t* from) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm_loadu_si128(reinterpret_cast<const __m128i*>(from));
    return (F32)_mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(bytes));
#elif defined(__AVX2__)
    const __m128i bytes = _mm_loadl_epi64(reinterpret_cast<const __m128i*>(from));
    return (F32)_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes));
#else
    F32 v;
    for (int32_t i = 0; i < kLanes; ++i) v[i] = from[i];
    return v;
#endif
}

// Two registers of neighboring values: those at even places, and those at odd places. This is cheaper than loading them
// in order, for code that does not need the order.
INLINE void load_pairs(const bf16* from, F32& even, F32& odd) {
    U32 pairs;
    __builtin_memcpy(&pairs, from, sizeof pairs);
    even = (F32)(pairs << 16);
    odd = (F32)(pairs & 0xffff0000u);
}

INLINE void load_pairs(const float* from, F32& first, F32& second) {
    first = load(from);
    second = load(from + kLanes);
}

// `from`, or if fewer than N values are left there, `lanes` with those values and zeros after them. Nothing beyond them
// is read.
template <int32_t N, class T>
INLINE const T* padded(const T* from, int32_t count, T (&lanes)[N]) {
    if (count >= N) return from;
    __builtin_memset(lanes, 0, sizeof lanes);
    __builtin_memcpy(lanes, from, count * sizeof(T));
    return lanes;
}

// The first `count` lanes, zeros after them; all lanes if count is larger.
template <class T>
INLINE F32 load(const T* from, int32_t count) {
    T lanes[kLanes];
    return load(padded(from, count, lanes));
}

template <class T>
INLINE void load_pairs(const T* from, int32_t count, F32& even, F32& odd) {
    T lanes[2 * kLanes];
    load_pairs(padded(from, count, lanes), even, odd);
}

INLINE void store(float* to, F32 v) {
    __builtin_memcpy(to, &v, sizeof v);
}

// To nearest, ties to even, as torch rounds; NaN stays NaN.
INLINE void store(bf16* to, F32 v) {
    const U32 bits = (U32)v;
    const U32 rounded = (bits + 0x7fff + ((bits >> 16) & 1)) >> 16;
    const U32 chosen = v == v ? rounded : (U32{} + 0x7fc0);
#if defined(__AVX512F__)
    _mm256_storeu_si256(reinterpret_cast<__m256i*>(to), _mm512_cvtepi32_epi16((__m512i)chosen));
#elif defined(__AVX2__)
    const __m256i mixed = _mm256_packus_epi32((__m256i)chosen, (__m256i)chosen);  // within halves of 128 bits
    const __m128i half = _mm256_castsi256_si128(_mm256_permute4x64_epi64(mixed, 0x08));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), half);
#else
    const U16 half = __builtin_convertvector(chosen, U16);
    __builtin_memcpy(to, &half, sizeof half);
#endif
}

// To nearest, ties to even; |v| <= 127.
INLINE void store(int8_t* to, F32 v) {
#if defined(__AVX512F__)
    const __m128i bytes = _mm512_cvtepi32_epi8(_mm512_cvtps_epi32((__m512)v));
    _mm_storeu_si128(reinterpret_cast<__m128i*>(to), bytes);
#elif defined(__AVX2__)
    const __m256i whole = _mm256_cvtps_epi32((__m256)v);
    const __m128i half = _mm_packs_epi32(_mm256_castsi256_si128(whole), _mm256_extracti128_si256(whole, 1));
    _mm_storel_epi64(reinterpret_cast<__m128i*>(to), _mm_packs_epi16(half, half));
#else
    const I32 bits = (I32)(v + 12582912.0f);  // 1.5 * 2^23: rounds to an integer in the low bits
    for (int32_t i = 0; i < kLanes; ++i) to[i] = static_cast<int8_t>(bits[i]);
#endif
}

// The inverse of load_pairs for the first `count` of the two registers.
INLINE void store_pairs(bf16* to, F32 even, F32 odd, int32_t count) {
    bf16 evens[kLanes], odds[kLanes];
    store(evens, even);
    store(odds, odd);
    for (int32_t i = 0; i < count; ++i) to[i] = i % 2 ? odds[i / 2] : evens[i / 2];
}

INLINE void store_pairs(float* to, F32 first, F32 second, int32_t count) {
    float lanes[2 * kLanes];
    store(lanes, first);
    store(lanes + kLanes, second);
    __builtin_memcpy(to, lanes, count * sizeof(float));
}

template <class T>
INLINE void store(T* to, F32 v, int32_t count) {
    T lanes[kLanes];
    store(count >= kLanes ? to : lanes, v);
    if (count < kLanes) __builtin_memcpy(to, lanes, count * sizeof(T));
}

INLINE float sum(F32 v) {
#if defined(__AVX512F__)
    return _mm512_reduce_add_ps((__m512)v);
#else
    float lanes[kLanes];
    store(lanes, v);
    for (int32_t step = kLanes / 2; step; step /= 2) {
        for (int32_t i = 0; i < step; ++i) lanes[i] += lanes[i + step];
    }
    return lanes[0];
#endif
}

// v in the first `count` lanes, zero after them.
INLINE F32 first_lanes(F32 v, int32_t count) {
    F32 numbers;
    for (int32_t i = 0; i < kLanes; ++i) numbers[i] = static_cast<float>(i);
    return numbers < splat(static_cast<float>(count)) ? v : F32{};
}

INLINE F32 sqrt(F32 v) {
    float lanes[kLanes];
    store(lanes, v);
    for (int32_t i = 0; i < kLanes; ++i) lanes[i] = __builtin_sqrtf(lanes[i]);
    return load(lanes);
}

// e^x within 2 units in the last place; infinity above 88.8, and below -87.3 subnormal numbers or 0. Cody and Waite's
// reduction to |r| <= ln(2) / 2, Taylor's series to the seventh order.
INLINE F32 exp(F32 x) {
#if defined(__AVX512F__)
    // both give their second operand where one is NaN
    const F32 bounded = (F32)_mm512_min_ps(_mm512_set1_ps(89.0f), _mm512_max_ps(_mm512_set1_ps(-105.0f), (__m512)x));
#else
    const F32 bounded = x < -87.3f ? splat(-87.3f) : x > 89.0f ? splat(89.0f) : x;
#endif
    const F32 shifted = bounded * 1.44269504f + 12582912.0f;  // 1.5 * 2^23: rounds to an integer in the low bits
    const F32 n = shifted - 12582912.0f;
    const F32 r = (bounded - n * 0.693359375f) + n * 2.12194440e-4f;
    F32 y = splat(1.0f / 5040);
    y = y * r + 1.0f / 720;
    y = y * r + 1.0f / 120;
    y = y * r + 1.0f / 24;
    y = y * r + 1.0f / 6;
    y = y * r + 0.5f;
    y = y * r + 1.0f;
    y = y * r + 1.0f;
#if defined(__AVX512F__)
    return (F32)_mm512_scalef_ps((__m512)y, (__m512)n);
#else
    // 2^n in two factors: n reaches 128.
    const I32 whole = __builtin_convertvector(n, I32);
    const I32 half = whole >> 1;
    const F32 low = (F32)((half + 127) << 23), high = (F32)((whole - half + 127) << 23);
    return x < -87.3f ? F32{} : y * low * high;
#endif
}

// x * sigmoid(x)
INLINE F32 silu(F32 x) {
    return x / (1.0f + exp(-x));
}

// x Phi(x), the exact GELU, off by less than x 2^-23 (relatively by 1e-5 at most down to x = -6). Phi, the normal
// distribution function, has tails exp(-x^2 / 2 + s(|x|)) / 2 with s(t) = log(erfcx(t / sqrt 2)), here a minimax
// polynomial weighted by the tail, up to 6. Nothing cancels, unlike in 1 + erf(x / sqrt 2) for negative x.
INLINE F32 gelu(F32 x) {
    const F32 size = (F32)((U32)x & 0x7fffffffu);
    const F32 t = size < 6.0f ? size : splat(6.0f);
    F32 s = splat(-1.7181041e-8f);
    s = s * t + 5.2823998e-7f;
    s = s * t - 6.9361178e-6f;
    s = s * t + 4.9424863e-5f;
    s = s * t - 1.8256967e-4f;
    s = s * t - 2.1446287e-5f;
    s = s * t + 4.8392713e-3f;
    s = s * t - 3.6364403e-2f;
    s = s * t + 0.18169679f;
    s = s * t - 0.79788506f;
    const F32 tail = 0.5f * exp(s * t - 0.5f * size * size);
    return x * (x < 0.0f ? tail : 1.0f - tail);
}
