"""The generation parts around the language model: time embedding, ConvNeXt encoder and decoder, NHWC."""

from __future__ import annotations

from flashjanus.checkpoint import GenDecoderConfig, GenEncoderConfig, JanusFlowConfig
from flashjanus.engine.graph import Graph, Value

from .policy import Policy


def time_tables(g: Graph, config: JanusFlowConfig, policy: Policy, t: Value) -> tuple[Value, Value | None]:
    """(t_emb (R, K, D), modulation (R, K, E), None without ConvNeXt blocks) of times t (R, K) in [0, 1000).

    E runs over the blocks of the encoder, then of the decoder, each 2 C wide: (scale, shift).
    """
    e = g.add("time_embedding", t, C=config.gen_encoder.channels, dtype=policy.vector)
    for name in ("time.1", "time.2"):
        if name == "time.2":
            e = g.add("silu", e)
        e = g.add("linear", e, g.weight(f"{name}.w"), g.optional_weight(f"{name}.b"), label=f"{name}.out")
    return e, modulation(g, config, e)


def modulation(g: Graph, config: JanusFlowConfig, t_emb: Value) -> Value | None:
    """The (scale, shift) of every block (R, K, E) by t_emb (R, K, D); None without ConvNeXt blocks."""
    if not modulation_width(config):
        return None
    bias = g.optional_weight("mod.b")
    out: Value = g.add("linear", g.add("silu", t_emb), g.weight("mod.w"), bias, label="mod.out")
    return out


def modulation_width(config: JanusFlowConfig) -> int:
    """E, the width of the modulation table."""
    return sum(width for _, width in _blocks(config).values())


def _blocks(config: JanusFlowConfig) -> dict[str, tuple[int, int]]:
    """Offset and width of each block's (scale, shift) in the modulation table."""
    enc, dec = config.gen_encoder, config.gen_decoder
    blocks: dict[str, tuple[int, int]] = {}
    offset = 0
    for prefix, part, channels in (("enc", enc, enc.channels), ("dec", dec, dec.width)):
        for i in range(part.blocks):
            blocks[f"{prefix}.{i}"] = (offset, 2 * channels)
            offset += 2 * channels
    return blocks


def _middle(
    g: Graph,
    config: JanusFlowConfig,
    part: GenEncoderConfig | GenDecoderConfig,
    prefix: str,
    policy: Policy,
    x: Value,
    table: Value | None,
    step: Value,
) -> Value:
    """ConvNeXt blocks on x (B, h, w, C) in the residual dtype."""
    b, h, w, c = x.shape
    for name, (offset, width) in _blocks(config).items():
        if not name.startswith(prefix):
            continue
        y = g.add(
            "depthwise_norm",
            x,
            g.weight(f"{name}.dw.w"),
            g.optional_weight(f"{name}.dw.b"),
            g.weight(f"{name}.norm"),
            eps=part.norm_eps,
            dtype=policy.matrix,
            label=f"{name}.depthwise",
        )
        y = g.reshape(y, (b, h * w, c))
        # officially NCHW up to here, and channels last from the end of the first block
        split = policy.numerics == "official" and name == "enc.0"
        y = g.add(
            "linear",
            y,
            g.weight(f"{name}.fc1.w"),
            g.optional_weight(f"{name}.fc1.b"),
            split_bias=split,
            label=f"{name}.fc1.out",
        )
        y, sums = g.add("gelu_grn_stats", y, label=f"{name}.gelu")
        y = g.add("grn_apply", y, sums, g.weight(f"{name}.grn.w"), g.weight(f"{name}.grn.b"), label=f"{name}.grn.out")
        y = g.add("linear", y, g.weight(f"{name}.fc2.w"), g.optional_weight(f"{name}.fc2.b"), label=f"{name}.fc2.out")
        rows = g.reshape(x, (b, h * w, c))
        assert table is not None, "blocks have a modulation table"
        entry = g.narrow(table, 2, offset, width)
        x = g.add("residual_modulate", y, rows, entry, step, dtype=policy.residual, label=f"{name}.out")
        x = g.reshape(x, (b, h, w, c))
    return x


def encode(g: Graph, config: JanusFlowConfig, policy: Policy, z: Value, table: Value | None, step: Value) -> Value:
    """x (R, h, w, C) of latents z (R, c, H, W), in the residual dtype."""
    enc = config.gen_encoder
    latents = g.add("to_nhwc", z, divisor=1.0, dtype=policy.vector, label="enc.latents")
    weights = (g.weight("enc.in.w"), g.weight("enc.in.b"))
    x = g.add("conv2d", latents, *weights, stride=enc.stride, padding=enc.padding, label="enc.in.out")
    return _middle(g, config, enc, "enc", policy, x, table, step)


def decode(
    g: Graph, config: JanusFlowConfig, policy: Policy, h: Value, skip: Value, table: Value | None, step: Value
) -> Value:
    """Velocity patches (B, h', w', c p p) of h (B, h w, C) and the encoder's x (R, h, w, C); p = 2."""
    dec = config.gen_decoder
    rows, height, width, channels = h.shape[0], skip.shape[1], skip.shape[2], skip.shape[3]
    flat = g.reshape(skip, (skip.shape[0], height * width, channels))
    x = g.add("norm_concat", h, g.weight("dec.norm"), flat, eps=dec.norm_eps, dtype=policy.residual, label="dec.in")
    x = g.reshape(x, (rows, height, width, x.shape[-1]))
    x = _middle(g, config, dec, "dec", policy, x, table, step)
    for j in range(dec.upsamples):
        name = f"dec.out.{j}"
        if j:
            out = x.shape[-1] // 4 if isinstance(x.shape[-1], int) else 0
            height, width = height * 2, width * 2
            x = g.add("pixel_shuffle", x, H2=height, W2=width, C=out, label=f"{name}.shuffle")
        x = g.add(
            "rms_norm", x, g.weight(f"{name}.norm"), eps=dec.norm_eps, dtype=policy.vector, label=f"{name}.norm.out"
        )
        x = g.add("linear", x, g.weight(f"{name}.w"), g.optional_weight(f"{name}.b"), label=f"{name}.out")
    velocity: Value = x
    return velocity
