"""The understanding encoder: SigLIP's pre-norm ViT without its pooling head, and the aligner after it."""

from __future__ import annotations

from flashjanus.checkpoint import UnderstandingConfig
from flashjanus.engine.graph import Graph, Value

from .policy import Policy


def encode(g: Graph, config: UnderstandingConfig, policy: Policy, pixels: Value) -> Value:
    """Aligned features (I, N, D) of normalized pixels (I, 3, S, S)."""
    images, channels = pixels.shape[0], pixels.shape[1]
    tokens = (config.image_size // config.patch_size) ** 2
    width, heads, head_dim, eps = config.width, config.heads, config.head_dim, config.norm_eps

    def linear(x: Value, name: str) -> Value:
        out: Value = g.add("linear", x, g.weight(f"{name}.w"), g.optional_weight(f"{name}.b"), label=f"{name}.out")
        return out

    size = channels * config.patch_size**2
    patches = g.add("patchify", pixels, patch=config.patch_size, N=tokens, E=size, dtype=policy.matrix)
    position = g.view(g.weight("vit.pos"), (images, tokens, width), 0, (0, width, 1))
    x = g.add("add", linear(patches, "vit.patch"), position, dtype=policy.residual, label="vit.embedded")
    norm = (g.weight("vit.0.norm1.w"), g.weight("vit.0.norm1.b"))
    normed = g.add("layer_norm", x, *norm, eps=eps, dtype=policy.matrix, label="vit.0.norm1.out")
    for i in range(config.layers):
        qkv = linear(normed, f"vit.{i}.qkv")
        row = 3 * width
        q, k, v = (
            g.view(qkv, (images, tokens, heads, head_dim), part * width, (row * tokens, row, head_dim, 1))
            for part in range(3)
        )
        o = g.add("attention", q, k, v, None, None, None, scale=head_dim**-0.5, label=f"vit.{i}.attention")
        delta = linear(g.reshape(o, (images, tokens, width)), f"vit.{i}.proj")
        norm = (g.weight(f"vit.{i}.norm2.w"), g.weight(f"vit.{i}.norm2.b"))
        x, normed = g.add("add_layer_norm", x, delta, *norm, eps=eps, dtype=policy.matrix, label=f"vit.{i}.residual1")
        delta = linear(g.add("gelu", linear(normed, f"vit.{i}.fc1"), label=f"vit.{i}.gelu"), f"vit.{i}.fc2")
        name = f"vit.{i + 1}.norm1" if i + 1 < config.layers else "vit.norm"
        norm = (g.weight(f"{name}.w"), g.weight(f"{name}.b"))
        x, normed = g.add("add_layer_norm", x, delta, *norm, eps=eps, dtype=policy.matrix, label=f"vit.{i}.residual2")
    g.output("hidden", normed)
    return linear(normed, "vit.aligner")
