#include "bindings/bindings.h"

#define FIELD(member) {#member, &P::member}

namespace flashjanus {

template <>
const Fields<FlowUpdateParams>& fields() {
    using P = FlowUpdateParams;
    static const Fields<P> all{FIELD(v),           FIELD(z),      FIELD(history), FIELD(kept),     FIELD(schedule),
                               FIELD(step),        FIELD(steps),  FIELD(v_dtype), FIELD(rows),     FIELD(unconditional),
                               FIELD(evaluations), FIELD(height), FIELD(width),   FIELD(channels), FIELD(patch),
                               FIELD(threads)};
    return all;
}

template <>
const Fields<GemvParams>& fields() {
    using P = GemvParams;
    static const Fields<P> all{FIELD(x),        FIELD(norm),   FIELD(w),     FIELD(scale),   FIELD(bias),
                               FIELD(residual), FIELD(y),      FIELD(dtype), FIELD(x_dtype), FIELD(residual_dtype),
                               FIELD(y_dtype),  FIELD(eps),    FIELD(gated), FIELD(rows),    FIELD(columns),
                               FIELD(out),      FIELD(threads)};
    return all;
}

template <>
const Fields<TiledLinearParams>& fields() {
    using P = TiledLinearParams;
    static const Fields<P> all{FIELD(x),        FIELD(norm),   FIELD(w),       FIELD(scale),      FIELD(bias),
                               FIELD(residual), FIELD(y),      FIELD(x_dtype), FIELD(bias_dtype), FIELD(residual_dtype),
                               FIELD(y_dtype),  FIELD(act),    FIELD(eps),     FIELD(rows),       FIELD(columns),
                               FIELD(out),      FIELD(threads)};
    return all;
}

template <>
const Fields<Int4LinearParams>& fields() {
    using P = Int4LinearParams;
    static const Fields<P> all{FIELD(x),        FIELD(norm), FIELD(w),       FIELD(scale),
                               FIELD(residual), FIELD(y),    FIELD(x_dtype), FIELD(residual_dtype),
                               FIELD(y_dtype),  FIELD(eps),  FIELD(gated),   FIELD(rows),
                               FIELD(columns),  FIELD(out),  FIELD(threads)};
    return all;
}

template <>
const Fields<RmsNormParams>& fields() {
    using P = RmsNormParams;
    static const Fields<P> all{FIELD(x),     FIELD(delta),    FIELD(weight),      FIELD(total),   FIELD(y),
                               FIELD(scale), FIELD(x_dtype),  FIELD(delta_dtype), FIELD(y_dtype), FIELD(eps),
                               FIELD(rows),  FIELD(channels), FIELD(y_stride),    FIELD(threads)};
    return all;
}

template <>
const Fields<LayerNormParams>& fields() {
    using P = LayerNormParams;
    static const Fields<P> all{FIELD(x),    FIELD(delta),    FIELD(weight),      FIELD(bias),    FIELD(total),
                               FIELD(y),    FIELD(x_dtype),  FIELD(delta_dtype), FIELD(y_dtype), FIELD(eps),
                               FIELD(rows), FIELD(channels), FIELD(threads)};
    return all;
}

template <>
const Fields<SiluMulParams>& fields() {
    using P = SiluMulParams;
    static const Fields<P> all{FIELD(x),    FIELD(y),        FIELD(scale),  FIELD(dtype),
                               FIELD(rows), FIELD(channels), FIELD(threads)};
    return all;
}

template <>
const Fields<QuantiseRowsParams>& fields() {
    using P = QuantiseRowsParams;
    static const Fields<P> all{FIELD(x),    FIELD(q),        FIELD(scale),  FIELD(dtype),
                               FIELD(rows), FIELD(channels), FIELD(threads)};
    return all;
}

template <>
const Fields<RopeKvWriteParams>& fields() {
    using P = RopeKvWriteParams;
    static const Fields<P> all{FIELD(qkv),
                               FIELD(table),
                               FIELD(positions),
                               FIELD(slots),
                               FIELD(k_cache),
                               FIELD(v_cache),
                               FIELD(q),
                               FIELD(dtype),
                               FIELD(batch),
                               FIELD(tokens),
                               FIELD(heads),
                               FIELD(kv_heads),
                               FIELD(half),
                               FIELD(cache_batch_stride),
                               FIELD(cache_slot_stride),
                               FIELD(threads)};
    return all;
}

template <>
const Fields<DecodeAttentionParams>& fields() {
    using P = DecodeAttentionParams;
    static const Fields<P> all{
        FIELD(q),     FIELD(k),        FIELD(v),     FIELD(kv_start),     FIELD(kv_end),     FIELD(slots),
        FIELD(o),     FIELD(dtype),    FIELD(scale), FIELD(batch),        FIELD(queries),    FIELD(keys),
        FIELD(heads), FIELD(kv_heads), FIELD(head),  FIELD(batch_stride), FIELD(key_stride), FIELD(threads)};
    return all;
}

template <>
const Fields<DepthwiseNormParams>& fields() {
    using P = DepthwiseNormParams;
    static const Fields<P> all{FIELD(x),       FIELD(weight),       FIELD(bias),     FIELD(norm),   FIELD(y),
                               FIELD(x_dtype), FIELD(weight_dtype), FIELD(y_dtype),  FIELD(eps),    FIELD(batch),
                               FIELD(height),  FIELD(width),        FIELD(channels), FIELD(threads)};
    return all;
}

template <>
const Fields<SampleTokenParams>& fields() {
    using P = SampleTokenParams;
    static const Fields<P> all{FIELD(logits),   FIELD(temperature), FIELD(top_k), FIELD(top_p),  FIELD(penalty),
                               FIELD(uniforms), FIELD(seen),        FIELD(token), FIELD(step),   FIELD(dtype),
                               FIELD(rows),     FIELD(vocab),       FIELD(steps), FIELD(threads)};
    return all;
}

template <>
const Fields<GeluGrnStatsParams>& fields() {
    using P = GeluGrnStatsParams;
    static const Fields<P> all{FIELD(x),     FIELD(y),         FIELD(sumsq),    FIELD(dtype),
                               FIELD(batch), FIELD(positions), FIELD(channels), FIELD(threads)};
    return all;
}

template <>
const Fields<GrnApplyParams>& fields() {
    using P = GrnApplyParams;
    static const Fields<P> all{FIELD(y),     FIELD(sumsq), FIELD(weight),    FIELD(bias),     FIELD(o),
                               FIELD(dtype), FIELD(batch), FIELD(positions), FIELD(channels), FIELD(threads)};
    return all;
}

template <>
const Fields<ResidualModulateParams>& fields() {
    using P = ResidualModulateParams;
    static const Fields<P> all{
        FIELD(y),         FIELD(x),        FIELD(table),   FIELD(step),         FIELD(o),
        FIELD(y_dtype),   FIELD(x_dtype),  FIELD(o_dtype), FIELD(batch),        FIELD(images),
        FIELD(positions), FIELD(channels), FIELD(steps),   FIELD(image_stride), FIELD(step_stride),
        FIELD(threads)};
    return all;
}

template <>
const Fields<StepCacheParams>& fields() {
    using P = StepCacheParams;
    static const Fields<P> all{FIELD(x),      FIELD(total),     FIELD(slot_0),   FIELD(slot_1),      FIELD(lines),
                               FIELD(step),   FIELD(y),         FIELD(x_dtype),  FIELD(slot_dtype),  FIELD(batch),
                               FIELD(images), FIELD(positions), FIELD(channels), FIELD(evaluations), FIELD(threads)};
    return all;
}

template <>
const Fields<GroupNormSiluParams>& fields() {
    using P = GroupNormSiluParams;
    static const Fields<P> all{FIELD(x),         FIELD(weight),   FIELD(bias),   FIELD(y),
                               FIELD(dtype),     FIELD(eps),      FIELD(silu),   FIELD(batch),
                               FIELD(positions), FIELD(channels), FIELD(groups), FIELD(threads)};
    return all;
}

}  // namespace flashjanus
