// RMSNorm of a row in two passes, for kernels that normalize their input first. Included inside an anonymous namespace,
// after vector.h.

template <class X>
INLINE float sum_of_squares(const X* x, int32_t channels) {
    F32 squares{};
    for (int32_t c = 0; c < channels; c += kLanes) {
        const F32 v = load(x + c, channels - c);
        squares += v * v;
    }
    return sum(squares);
}

// y = x / sqrt(squares / channels + eps) * weight
template <class X, class Y>
INLINE void scale_by_rms(const X* x, float squares, const float* weight, float eps, int32_t channels, Y* y) {
    const float scale = 1.0f / __builtin_sqrtf(squares / static_cast<float>(channels) + eps);
    for (int32_t c = 0; c < channels; c += kLanes) {
        const int32_t count = channels - c;
        store(y + c, load(x + c, count) * scale * load(weight + c, count), count);
    }
}

// y = norm(x) in float32, or x itself if there is no weight.
template <class X>
INLINE void norm_or_copy(const X* x, const float* weight, float eps, int32_t channels, float* y) {
    if (weight) return scale_by_rms(x, sum_of_squares(x, channels), weight, eps, channels, y);
    for (int32_t c = 0; c < channels; c += kLanes) store(y + c, load(x + c, channels - c), channels - c);
}
