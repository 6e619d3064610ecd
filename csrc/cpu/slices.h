// [batch, positions, channels] cut along channels, for kernels that sum over positions: a channel's sum has one owner,
// so its bits do not depend on the number of threads. Included inside an anonymous namespace, like vector.h.

constexpr int32_t kSlice = 512;  // the most channels of a slice

struct Slices {
    int32_t channels;
    int32_t step;
    int32_t per_image;
    int32_t count;

    // As wide as possible with equal work for all threads, in whole cache lines.
    Slices(int32_t batch, int32_t channels, int32_t threads) : channels(channels) {
        const int64_t rounds = 1 + (int64_t{batch} * channels - 1) / (int64_t{threads} * kSlice);
        const int64_t wanted = (rounds * threads + batch - 1) / batch;
        const int64_t width = (channels + wanted - 1) / wanted;
        step = static_cast<int32_t>((width + 31) / 32 * 32);
        per_image = (channels + step - 1) / step;
        count = batch * per_image;
    }
    int32_t image(int32_t i) const {
        return i / per_image;
    }
    int32_t first(int32_t i) const {
        return i % per_image * step;
    }
    int32_t width(int32_t i) const {
        return channels - first(i) < step ? channels - first(i) : step;
    }
};
