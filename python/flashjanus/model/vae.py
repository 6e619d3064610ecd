"""The VAE's decoder (diffusers' AutoencoderKL), NHWC: latents to images."""

from __future__ import annotations

from flashjanus.checkpoint import VaeConfig
from flashjanus.engine.graph import Graph, Value
from flashjanus.engine.specs import static

from .policy import Policy

EPS = 1e-6


def decode(g: Graph, config: VaeConfig, policy: Policy, z: Value) -> Value:
    """Image (B, 3, H s, W s) in float32, about [-1, 1], of latents z (B, c, H, W) as the flow leaves them."""
    groups = config.norm_num_groups

    def conv(x: Value, name: str) -> Value:
        weight = g.weight(f"vae.{name}.w")
        out: Value = g.add(
            "conv2d",
            x,
            weight,
            g.weight(f"vae.{name}.b"),
            stride=1,
            padding=static(weight.shape[-1]) // 2,
            label=f"vae.{name}.out",
        )
        return out

    def norm(x: Value, name: str, silu: bool = True) -> Value:
        weights = (g.weight(f"vae.{name}.w"), g.weight(f"vae.{name}.b"))
        out: Value = g.add("group_norm_silu", x, *weights, groups=groups, eps=EPS, silu=silu, label=f"vae.{name}.out")
        return out

    def resnet(x: Value, name: str) -> Value:
        h = conv(norm(x, f"{name}.norm1"), f"{name}.conv1")
        h = conv(norm(h, f"{name}.norm2"), f"{name}.conv2")
        if f"vae.{name}.shortcut.w" in g.weights:
            x = conv(x, f"{name}.shortcut")
        out: Value = g.add("add", x, h, dtype=policy.matrix, label=f"vae.{name}.out")
        return out

    def attention(x: Value, name: str) -> Value:
        b, h, w, c = x.shape
        n = h * w
        normed = g.reshape(norm(x, f"{name}.norm", silu=False), (b, n, c))
        qkv = g.add(
            "linear", normed, g.weight(f"vae.{name}.qkv.w"), g.weight(f"vae.{name}.qkv.b"), label=f"vae.{name}.qkv.out"
        )
        row = 3 * c
        q, k, v = (g.view(qkv, (b, n, 1, c), c * part, (row * n, row, c, 1)) for part in range(3))
        o = g.add("attention", q, k, v, None, None, None, scale=static(c) ** -0.5, label=f"vae.{name}.attention")
        weights = (g.weight(f"vae.{name}.proj.w"), g.weight(f"vae.{name}.proj.b"))
        o = g.add("linear", g.reshape(o, (b, n, c)), *weights, label=f"vae.{name}.proj.out")
        flat = g.reshape(x, (b, n, c))
        return g.reshape(g.add("add", flat, o, dtype=policy.matrix, label=f"vae.{name}.out"), (b, h, w, c))

    x = g.add("to_nhwc", z, divisor=config.scaling_factor, dtype=policy.matrix, label="vae.latents")
    if config.use_post_quant_conv:
        x = conv(x, "post_quant")
    x = resnet(conv(x, "conv_in"), "mid.resnet.0")
    if config.mid_block_add_attention:
        x = attention(x, "mid.attn")
    x = resnet(x, "mid.resnet.1")
    blocks = len(config.block_out_channels)
    for i in range(blocks):
        for j in range(config.layers_per_block + 1):
            x = resnet(x, f"up.{i}.resnet.{j}")
        if i < blocks - 1:
            x = conv(g.add("upsample_nearest", x, label=f"vae.up.{i}.doubled"), f"up.{i}.upsample")
    x = conv(norm(x, "norm_out"), "conv_out")
    out: Value = g.add("to_nchw", x, dtype=policy.residual, label="vae.image")
    return out
