// The keys that the queries of one row see. Included inside an anonymous namespace.

// Query i sees keys start to stop(i) - 1 and the one in its own slot. Without the rule's arguments it sees all keys.
struct Visible {
    const int32_t* ends;   // [queries], or null
    const int32_t* slots;  // [queries], or null
    int32_t keys;
    int32_t start;

    Visible(const DecodeAttentionParams& p, int32_t b)
        : ends(p.kv_end ? p.kv_end + int64_t{b} * p.queries : nullptr),
          slots(p.slots ? p.slots + int64_t{b} * p.queries : nullptr),
          keys(p.keys),
          start(p.kv_start && p.kv_start[b] > 0 ? p.kv_start[b] : 0) {
    }
    int32_t stop(int32_t i) const {
        return ends && ends[i] < keys ? ends[i] : keys;
    }
    int32_t own(int32_t i) const {
        return slots ? slots[i] : start;
    }
    // All keys that queries first to last - 1 see are in begin(..) .. end(..) - 1.
    int32_t begin(int32_t first, int32_t last) const {
        int32_t found = keys;
        for (int32_t i = first; i < last; ++i) {
            const int32_t from = own(i) < start || start >= stop(i) ? own(i) : start;
            found = from < found ? from : found;
        }
        return found;
    }
    int32_t end(int32_t first, int32_t last) const {
        int32_t found = 0;
        for (int32_t i = first; i < last; ++i) {
            const int32_t to = own(i) >= stop(i) || start >= stop(i) ? own(i) + 1 : stop(i);
            found = to > found ? to : found;
        }
        return found;
    }
    // seen[j] = whether any of these queries sees key low + j, for `count` keys. Other keys may hold anything, NaN too,
    // and 0 * NaN is NaN.
    void mark(int32_t first, int32_t last, int32_t low, int32_t count, uint8_t* seen) const {
        int32_t most = 0;
        for (int32_t i = first; i < last; ++i) most = stop(i) > most ? stop(i) : most;
        for (int32_t j = 0; j < count; ++j) seen[j] = low + j >= start && low + j < most;
        for (int32_t i = first; i < last; ++i) seen[own(i) - low] = 1;
    }
};
