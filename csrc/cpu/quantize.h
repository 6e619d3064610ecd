// A row y in int8: q = y / scale rounded to even, scale = max |y| / 127. If max |y| is below 1e-30, as in a row of
// zeros, q = 0. If it is not finite, q = 0 too, scale is not finite either, and q * scale is NaN. Included inside an
// anonymous namespace, after vector.h.

INLINE void quantize(const float* y, int32_t channels, int8_t* q, float* scale) {
    I32 sizes{};  // |y| as integers, of which NaN is the largest
    for (int32_t c = 0; c < channels; c += kLanes) {
        const I32 size = (I32)load(y + c, channels - c) & 0x7fffffff;
        sizes = size > sizes ? size : sizes;
    }
    int32_t most = 0;
    for (int32_t i = 0; i < kLanes; ++i) most = sizes[i] > most ? sizes[i] : most;
    float largest;
    __builtin_memcpy(&largest, &most, sizeof largest);
    *scale = largest / 127.0f;
    const bool usable = largest >= 1e-30f && largest < __builtin_inff();
    if (!usable) {
        for (int32_t c = 0; c < channels; c += kLanes) store(q + c, F32{}, channels - c);
        return;
    }
    const float steps = 127.0f / largest;
    for (int32_t c = 0; c < channels; c += kLanes) store(q + c, load(y + c, channels - c) * steps, channels - c);
}

// Calls fill(y) for row r. If y is int8, calls fill with a row of float32 instead and quantizes that into y.
template <class P, class Y, class Fill>
INLINE void write(const P&, int32_t, Y* y, const Fill& fill) {
    fill(y);
}

template <class P, class Fill>
INLINE void write(const P& p, int32_t r, int8_t* q, const Fill& fill) {
    float y[kMaxQuantizedChannels];
    fill(y);
    quantize(y, p.channels, q, p.scale + r);
}
