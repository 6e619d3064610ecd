"""JanusFlow as its definition reads: whole sequences, masks written out, no caches, float64.

Independent of the package: nothing here is imported from it. Only for small models.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F

State = dict[str, torch.Tensor]
Spans = Sequence[tuple[int, int]]


def rms_norm(x: torch.Tensor, weight: torch.Tensor, eps: float = 1e-6) -> torch.Tensor:
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight


def attention_mask(length: int, blocks: Spans, hidden: Sequence[int] = ()) -> torch.Tensor:
    """True where query i (rows) sees key j: j is not after i, or both lie in one block; `hidden` keys are never seen.

    blocks: half-open spans of the sequence that are bidirectional inside.
    """
    mask = torch.ones(length, length, dtype=torch.bool).tril()
    for start, end in blocks:
        mask[start:end, start:end] = True
    mask[:, list(hidden)] = False
    return mask


class Reference:
    """The model of an official config and state dict."""

    def __init__(self, config: dict[str, Any], state: State) -> None:
        self.config = config
        self.language = config["language_config"]
        self.vit = config["vision_und_enc_config"]["params"]
        self.bidirectional = config.get("image_attention") == "bidirectional"
        self.state = {name: tensor.double() for name, tensor in state.items()}

    def weights(self, prefix: str) -> tuple[torch.Tensor, torch.Tensor | None]:
        return self.state[f"{prefix}.weight"], self.state.get(f"{prefix}.bias")

    def linear(self, x: torch.Tensor, prefix: str) -> torch.Tensor:
        return F.linear(x, *self.weights(prefix))

    def llama(self, h: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
        """Final-norm hidden states (T, D) of embeddings h (T, D) at positions 0 .. T-1."""
        heads, kv_heads = self.language["num_attention_heads"], self.language["num_key_value_heads"]
        length, width = h.shape
        size = width // heads
        angles = torch.arange(length)[:, None] / 10000.0 ** (torch.arange(0, size, 2, dtype=torch.float64) / size)
        cos, sin = angles.cos(), angles.sin()

        def rope(x: torch.Tensor) -> torch.Tensor:
            a, b = x[..., : size // 2], x[..., size // 2 :]
            return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)

        def project(x: torch.Tensor, name: str, count: int) -> torch.Tensor:
            return self.linear(x, f"{at}.self_attn.{name}_proj").view(length, count, size).transpose(0, 1)

        for i in range(self.language["num_hidden_layers"]):
            at = f"language_model.model.layers.{i}"
            x = rms_norm(h, self.state[f"{at}.input_layernorm.weight"])
            q, k, v = rope(project(x, "q", heads)), rope(project(x, "k", kv_heads)), project(x, "v", kv_heads)
            k, v = (t.repeat_interleave(heads // kv_heads, 0) for t in (k, v))
            scores = (q @ k.transpose(1, 2) / size**0.5).masked_fill(~mask, -torch.inf)
            out = (scores.softmax(-1) @ v).transpose(0, 1).reshape(length, width)
            h = h + self.linear(out, f"{at}.self_attn.o_proj")
            x = rms_norm(h, self.state[f"{at}.post_attention_layernorm.weight"])
            gate, up = self.linear(x, f"{at}.mlp.gate_proj"), self.linear(x, f"{at}.mlp.up_proj")
            h = h + self.linear(F.silu(gate) * up, f"{at}.mlp.down_proj")
        return rms_norm(h, self.state["language_model.model.norm.weight"])

    def blocks(self, part: str) -> int:
        params: dict[str, Any] = self.config[f"vision_gen_{part}_config"]["params"]
        return int(params["layers_in_middle"]) if params.get("use_mid_block", True) else 0

    def convnext(self, x: torch.Tensor, at: str, t_emb: torch.Tensor) -> torch.Tensor:
        """One block on an image x (C, H, W)."""
        y = F.conv2d(x[None], *self.weights(f"{at}.depthwise"), padding=3, groups=len(x))[0].permute(1, 2, 0)
        y = F.gelu(self.linear(rms_norm(y, self.state[f"{at}.norm.weight"]), f"{at}.channelwise_linear_1"))
        norm = y.flatten(0, 1).norm(dim=0)
        weight, bias = (self.state[f"{at}.channelwise_norm.{part}"].flatten() for part in ("weight", "bias"))
        y = bias + (weight * norm / (norm.mean() + 1e-6) + 1) * y
        y = x.permute(1, 2, 0) + self.linear(y, f"{at}.channelwise_linear_2")
        scale, shift = self.linear(F.silu(t_emb), f"{at}.cond_embeds_mapper").chunk(2)
        return (y * (1 + scale) + shift).permute(2, 0, 1)

    def velocity(self, prompt: Sequence[int], z: torch.Tensor, t: float, conditional: bool) -> torch.Tensor:
        """v (c, H, W) at latents z and time t in [0, 1000); `prompt` without its trailing tag."""
        encoder, decoder = "vision_gen_enc_model", "vision_gen_dec_model"
        in_conv = self.state[f"{encoder}.in_conv.weight"]
        half = len(in_conv) // 2
        frequency = 10000.0 ** (-torch.arange(half, dtype=torch.float64) / half)
        t_emb = torch.cat([(t * frequency).cos(), (t * frequency).sin()])
        t_emb = F.silu(self.linear(t_emb, f"{encoder}.time_embed.linear_1"))
        t_emb = self.linear(t_emb, f"{encoder}.time_embed.linear_2")

        x = F.conv2d(z[None], *self.weights(f"{encoder}.in_conv"), stride=in_conv.shape[-1])[0]
        for i in range(self.blocks("enc")):
            x = self.convnext(x, f"{encoder}.mid_block.res_blocks.{i}", t_emb)
        tokens = self.linear(x.flatten(1).T, "vision_gen_enc_aligner")

        embedded = self.state["language_model.model.embed_tokens.weight"][torch.tensor(prompt)]
        length, start = len(prompt) + 1 + len(tokens), len(prompt) + 1
        hidden = () if conditional else range(1, len(prompt))
        mask = attention_mask(length, [(start, length)] if self.bidirectional else [], hidden)
        h = self.llama(torch.cat([embedded, t_emb[None], tokens]), mask)[start:]

        h = self.linear(rms_norm(h, self.state["vision_gen_dec_aligner_norm.weight"]), "vision_gen_dec_aligner")
        h = rms_norm(h, self.state[f"{decoder}.input_norm.weight"])
        y = torch.cat([h.T.reshape(-1, *x.shape[1:]), x])
        for i in range(self.blocks("dec")):
            y = self.convnext(y, f"{decoder}.mid_block.res_blocks.{i}", t_emb)
        y = rms_norm(y.permute(1, 2, 0), self.state[f"{decoder}.out_convs.0.norm.weight"]).permute(2, 0, 1)
        y = F.conv2d(y[None], *self.weights(f"{decoder}.out_convs.0.unpatch_conv"))
        return F.pixel_shuffle(y, 2)[0]

    def sample(self, prompt: Sequence[int], z: torch.Tensor, guidance: float, steps: int) -> torch.Tensor:
        """Latents (c, H, W) at t = 1."""
        z = z.double()
        for k in range(steps):
            t = 1000.0 * k / steps
            cond, uncond = (self.velocity(prompt, z, t, c) for c in (True, False))
            z = z + (guidance * cond - (guidance - 1) * uncond) / steps
        return z

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Aligned features (N, D) of normalized pixels (3, S, S)."""
        tower = "vision_und_enc_model.vision_tower"
        heads, patch = self.vit["heads"], self.vit["patch_size"]
        x = F.conv2d(pixels.double()[None], *self.weights(f"{tower}.patch_embed.proj"), stride=patch)[0]
        x = x.flatten(1).T + self.state[f"{tower}.pos_embed"][0]
        width = x.shape[1]

        def norm(x: torch.Tensor, name: str) -> torch.Tensor:
            return F.layer_norm(x, (width,), *self.weights(name), eps=1e-6)

        for i in range(self.vit["layers"]):
            at = f"{tower}.blocks.{i}"
            qkv = self.linear(norm(x, f"{at}.norm1"), f"{at}.attn.qkv").view(len(x), 3, heads, width // heads)
            q, k, v = qkv.permute(1, 2, 0, 3)
            scores = q @ k.transpose(1, 2) / (width // heads) ** 0.5
            x = x + self.linear((scores.softmax(-1) @ v).transpose(0, 1).reshape(len(x), width), f"{at}.attn.proj")
            x = x + self.linear(F.gelu(self.linear(norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")), f"{at}.mlp.fc2")
        return self.linear(norm(x, f"{tower}.norm"), "vision_und_enc_aligner")

    def logits(self, ids: Sequence[int], images: Sequence[torch.Tensor], start_id: int, image_id: int) -> torch.Tensor:
        """Logits (V,) after ids, whose image blocks (start, features) take `images` in order."""
        h = self.state["language_model.model.embed_tokens.weight"][torch.tensor(ids)].clone()
        starts = [i for i, token in enumerate(ids) if token == start_id]
        blocks = []
        for at, pixels in zip(starts, images, strict=True):
            features = self.features(pixels)
            assert all(token == image_id for token in ids[at + 1 : at + 1 + len(features)])
            h[at] = self.state["beg_of_und_embed"][0]
            h[at + 1 : at + 1 + len(features)] = features
            blocks.append((at + 1, at + 1 + len(features)))
        mask = attention_mask(len(ids), blocks if self.bidirectional else [])
        return self.linear(self.llama(h, mask)[-1], "language_model.lm_head")
