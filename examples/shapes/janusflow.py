"""JanusFlow as trainable PyTorch: parameters by their official names, whole sequences, masks written out.

Several noise levels share one prompt and several questions share one picture: `Layout` masks say who sees whom.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.nn.functional as F
from flashjanus.checkpoint import JanusFlowConfig, weight_layout
from torch import Tensor, nn

UNDERSTANDING = "vision_und_enc_model."


@dataclass(frozen=True)
class Packed:
    """Sequences (B, L): positions of the tokens, and which of them sees which (B, 1, L, L) as 0 or -inf to be added."""

    positions: Tensor
    mask: Tensor


class JanusFlow(nn.Module):
    """config: an official config.json. Parameters: see `official_state`."""

    def __init__(self, config: dict[str, Any], generator: torch.Generator) -> None:
        super().__init__()
        self.config = JanusFlowConfig.from_dict(config)
        sources = [source for target in weight_layout(self.config) for source in target.sources]
        for name, shape in ((source.names[0], source.shapes[0]) for source in sources):
            self.register_parameter(name.replace(".", "/"), nn.Parameter(_initial(name, shape, generator)))
        width, teacher = self.config.language.hidden_size, self.config.understanding.width
        # Of representation alignment; it is thrown away after training.
        self.align = nn.Sequential(nn.Linear(width, 2 * width), nn.SiLU(), nn.Linear(2 * width, teacher))

    def __getitem__(self, name: str) -> Tensor:
        return self.get_parameter(name.replace(".", "/"))

    def official_state(self) -> dict[str, Tensor]:
        """Tensors by official name."""
        named = ((name.replace("/", "."), p.detach()) for name, p in self.named_parameters())
        return {name: p for name, p in named if not name.startswith("align.")}

    def part(self, *prefixes: str) -> list[nn.Parameter]:
        """The parameters whose official names begin with one of `prefixes`."""
        return [p for name, p in self.named_parameters() if name.replace("/", ".").startswith(prefixes)]

    def linear(self, x: Tensor, at: str, bias: bool = True) -> Tensor:
        return F.linear(x, self[f"{at}.weight"], self[f"{at}.bias"] if bias else None)

    # Language model

    def embed(self, ids: Tensor) -> Tensor:
        return F.embedding(ids, self["language_model.model.embed_tokens.weight"])

    def llama(self, h: Tensor, packed: Packed, middle: int = 0) -> tuple[Tensor, Tensor]:
        """Final-norm hidden states (B, L, D), and those after block `middle`."""
        c = self.config.language
        half = c.head_dim // 2
        frequency = c.rope_theta ** (-torch.arange(half, device=h.device) / half)
        angles = packed.positions[:, :, None].float() * frequency
        shape = (*packed.positions.shape, 2, c.num_attention_heads, c.head_dim)

        def spread(first: Tensor, second: Tensor) -> Tensor:
            return torch.cat([first, second], -1)[:, :, None, None].to(h.dtype).expand(shape).contiguous()

        rope = spread(angles.cos(), angles.cos()), spread(-angles.sin(), angles.sin())
        between = h
        mask = packed.mask.to(h.dtype)
        for i in range(c.num_hidden_layers):
            h = self.block(h, f"language_model.model.layers.{i}", rope, mask)
            if i + 1 == middle:
                between = h
        return rms_norm(h, self["language_model.model.norm.weight"], c.rms_norm_eps), between

    def block(self, h: Tensor, at: str, rope: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        c = self.config.language
        names = [f"{at}.self_attn.{n}_proj.weight" for n in "qkv"]
        x = rms_norm(h, self[f"{at}.input_layernorm.weight"], c.rms_norm_eps)
        qkv = F.linear(x, torch.cat([self[name] for name in names]))
        qkv = qkv.view(*h.shape[:2], 3, c.num_attention_heads, c.head_dim)
        q, k = rotate(qkv[:, :, :2], rope).permute(2, 0, 3, 1, 4).contiguous()
        out = attention(q, k, qkv[:, :, 2].transpose(1, 2).contiguous(), mask)
        h = h + self.linear(out.transpose(1, 2).reshape(h.shape), f"{at}.self_attn.o_proj", bias=False)
        x = rms_norm(h, self[f"{at}.post_attention_layernorm.weight"], c.rms_norm_eps)
        both = F.linear(x, torch.cat([self[f"{at}.mlp.gate_proj.weight"], self[f"{at}.mlp.up_proj.weight"]]))
        gate, up = both.chunk(2, -1)
        return h + self.linear(F.silu(gate) * up, f"{at}.mlp.down_proj", bias=False)

    def logits(self, h: Tensor) -> Tensor:
        return self.linear(h, "language_model.lm_head", bias=False)

    # Understanding encoder

    def see(self, pixels: Tensor) -> Tensor:
        """Features (B, N, W) of pixels (B, 3, S, S) in [-1, 1], after the last norm, before the aligner."""
        c, tower = self.config.understanding, f"{UNDERSTANDING}vision_tower"
        weight, bias = (self[f"{tower}.patch_embed.proj.{n}"] for n in ("weight", "bias"))
        x = F.conv2d(pixels, weight, bias, c.patch_size)
        x = x.flatten(2).transpose(1, 2) + self[f"{tower}.pos_embed"]
        for i in range(c.layers):
            at = f"{tower}.blocks.{i}"
            y = self.linear(self.layer_norm(x, f"{at}.norm1"), f"{at}.attn.qkv")
            q, k, v = y.view(*x.shape[:2], 3, c.heads, c.head_dim).permute(2, 0, 3, 1, 4)
            out = attention(q, k, v, None).transpose(1, 2).reshape(x.shape)
            x = x + self.linear(out, f"{at}.attn.proj")
            y = self.linear(self.layer_norm(x, f"{at}.norm2"), f"{at}.mlp.fc1")
            x = x + self.linear(F.gelu(y), f"{at}.mlp.fc2")
        return self.layer_norm(x, f"{tower}.norm")

    def layer_norm(self, x: Tensor, at: str) -> Tensor:
        eps = self.config.understanding.norm_eps
        return F.layer_norm(x, x.shape[-1:], self[f"{at}.weight"].to(x.dtype), self[f"{at}.bias"].to(x.dtype), eps)

    # Generation encoder and decoder, on channels-last images (B, H, W, C)

    def time(self, t: Tensor) -> Tensor:
        """Embedding (B, D) of times t (B,) in [0, 1000)."""
        half = self.config.gen_encoder.channels // 2
        frequency = 10000.0 ** (-torch.arange(half, device=t.device) / half)
        angles = t[:, None] * frequency
        at = "vision_gen_enc_model.time_embed"
        x = F.silu(self.linear(torch.cat([angles.cos(), angles.sin()], -1), f"{at}.linear_1"))
        return self.linear(x, f"{at}.linear_2")

    def encode(self, z: Tensor, t_emb: Tensor) -> Tensor:
        """Image tokens' features (B, H, W, C) of latents z (B, c, L, L)."""
        c, at = self.config.gen_encoder, "vision_gen_enc_model"
        x = F.conv2d(z, self[f"{at}.in_conv.weight"], self[f"{at}.in_conv.bias"], c.stride, c.padding)
        x = x.permute(0, 2, 3, 1)
        for i in range(c.blocks):
            x = self.convnext(x, f"{at}.mid_block.res_blocks.{i}", t_emb)
        return x

    def decode(self, h: Tensor, skip: Tensor, t_emb: Tensor) -> Tensor:
        """Velocity (B, c, L, L) of final-norm hidden states h (B, H * W, D) and the encoder's output."""
        at = "vision_gen_dec_model"
        h = rms_norm(h, self["vision_gen_dec_aligner_norm.weight"], 1e-6)
        h = self.linear(h, "vision_gen_dec_aligner").view(*skip.shape[:3], -1)
        x = torch.cat([rms_norm(h, self[f"{at}.input_norm.weight"], 1e-6), skip.to(h.dtype)], -1)
        for i in range(self.config.gen_decoder.blocks):
            x = self.convnext(x, f"{at}.mid_block.res_blocks.{i}", t_emb)
        x = rms_norm(x, self[f"{at}.out_convs.0.norm.weight"], 1e-6)
        weight, bias = (self[f"{at}.out_convs.0.unpatch_conv.{n}"] for n in ("weight", "bias"))
        x = F.linear(x, weight[:, :, 0, 0], bias)
        return F.pixel_shuffle(x.permute(0, 3, 1, 2), 2)

    def convnext(self, x: Tensor, at: str, t_emb: Tensor) -> Tensor:
        y = self.depthwise(x, f"{at}.depthwise")
        y = rms_norm(y, self[f"{at}.norm.weight"], 1e-6)
        y = F.gelu(self.linear(y, f"{at}.channelwise_linear_1"))
        # Not the root of a sum of squares: its slope is infinite where a channel is silent; vector_norm takes 0 there.
        norm = torch.linalg.vector_norm(y, dim=(1, 2), keepdim=True, dtype=torch.float32)
        norm = (norm / (norm.mean(-1, keepdim=True) + 1e-6)).to(y.dtype)
        weight, bias = (self[f"{at}.channelwise_norm.{n}"].flatten().to(y.dtype) for n in ("weight", "bias"))
        y = torch.addcmul(bias, weight * norm + 1, y)
        y = x + self.linear(y, f"{at}.channelwise_linear_2")
        scale, shift = self.linear(F.silu(t_emb), f"{at}.cond_embeds_mapper")[:, None, None].chunk(2, -1)
        return torch.addcmul(shift, y, 1 + scale)

    def depthwise(self, x: Tensor, at: str) -> Tensor:
        """7 x 7 convolution of every channel, as a product with one (H W) x (H W) matrix per channel.

        On a grid this small the kernel reaches everywhere, and a batched product beats the convolution.
        """
        _, height, width, channels = x.shape
        where = torch.arange(height * width, device=x.device)
        dy, dx = where[:, None] // width - where // width + 3, where[:, None] % width - where % width + 3
        inside = (dy >= 0) & (dy < 7) & (dx >= 0) & (dx < 7)
        kernel = self[f"{at}.weight"].flatten(1)
        matrix = kernel[:, (dy * 7 + dx).clamp(0, 48).flatten()].view(channels, *dy.shape) * inside
        columns = x.flatten(1, 2).permute(2, 0, 1)  # (C, B, from); matrix (C, from, to)
        return (columns @ matrix.to(x.dtype)).permute(1, 2, 0).view(x.shape) + self[f"{at}.bias"].to(x.dtype)

    # The two faces

    def velocity(self, ids: Tensor, packed: Packed, z: Tensor, t: Tensor, middle: int = 0) -> tuple[Tensor, Tensor]:
        """Velocities (B * K, c, L, L) of latents z (B * K, c, L, L) at times t (B * K,), K per prompt ids (B, P).

        The sequence is the prompt, then for each of the K: the time token and the image tokens. Also returns the image
        tokens' hidden states (B * K, N, D) after block `middle`.
        """
        count, levels = len(ids), len(z) // len(ids)
        t_emb = self.time(t)
        skip = self.encode(z, t_emb)
        tokens = self.linear(skip.flatten(1, 2), "vision_gen_enc_aligner")
        tail = torch.cat([t_emb[:, None].to(tokens.dtype), tokens], 1)
        tail = tail.view(count, levels * tail.shape[1], -1)
        h = torch.cat([self.embed(ids).to(tail.dtype), tail], 1)
        h, between = self.llama(h, packed, middle)

        def of_images(x: Tensor) -> Tensor:
            return x[:, ids.shape[1] :].reshape(count * levels, -1, x.shape[-1])[:, 1:]

        return self.decode(of_images(h), skip, t_emb), of_images(between)

    def read(self, features: Tensor) -> Tensor:
        """Tokens (B, N, D) of the understanding encoder's features."""
        return self.linear(features, "vision_und_enc_aligner")

    def read_latents(self, x: Tensor) -> Tensor:
        """Tokens (B, N, D) of a picture's latents x by the generation encoder at t = 1000, where nothing is noise.

        Only for the comparison with one encoder for both faces.
        """
        skip = self.encode(x, self.time(torch.full((len(x),), 1000.0, device=x.device)))
        return self.linear(skip.flatten(1, 2), "vision_gen_enc_aligner")

    def answers(self, ids: Tensor, packed: Packed, seen: Tensor, start: int) -> Tensor:
        """Logits (B, L, V) of ids (B, L) with a picture's tokens `seen` (B, N, D).

        They stand after the begin-of-image token at column `start`.
        """
        h = self.embed(ids)
        begin = self["beg_of_und_embed"].expand(len(ids), 1, -1)
        parts = (h[:, :start], begin, seen, h[:, start + 1 + seen.shape[1] :])
        h, _ = self.llama(torch.cat([part.to(seen.dtype) for part in parts], 1), packed)
        return self.logits(h)


class _RmsNorm(torch.autograd.Function):
    """x / rms(x) * weight with few passes over memory: training at these sizes is bound by them."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        norm = torch.linalg.vector_norm(x, dim=-1, keepdim=True, dtype=torch.float32)
        rstd = torch.rsqrt(norm.square() / x.shape[-1] + eps).to(x.dtype)
        ctx.save_for_backward(x, weight, rstd)
        return (x * rstd).mul_(weight.to(x.dtype))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, rstd = ctx.saved_tensors
        normal = x * rstd
        product = gradient * normal
        rows = product.view(-1, x.shape[-1])
        of_weight = torch.mv(rows.t(), rows.new_ones(len(rows))).float()
        mean = (torch.mv(rows, weight.to(x.dtype)) / x.shape[-1]).view(rstd.shape)
        dx = (gradient * weight.to(x.dtype)).sub_(normal.mul_(mean)).mul_(rstd)
        return dx, of_weight, None


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    apply: Callable[..., Tensor] = _RmsNorm.apply
    return apply(x, weight, eps)


class _Rotate(torch.autograd.Function):
    """RoPE in the half-rotation layout; its gradient is the rotation by the opposite angle."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        halves = x.reshape(*x.shape[:-1], 2, x.shape[-1] // 2).flip(-2).view(x.shape)
        return (x * cos).addcmul_(halves, sin)

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:
        cos, sin = ctx.saved_tensors
        return rotate(gradient, (cos, -sin)), None, None


def rotate(x: Tensor, rope: tuple[Tensor, Tensor]) -> Tensor:
    """RoPE on (B, L, 2, H, E); rope: cosines, and sines whose first half is negated, in the shape of x."""
    apply: Callable[..., Tensor] = _Rotate.apply
    return apply(x, *rope)


def attention(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    """(B, H, L, E); plain products, which train faster than the fused kernel at these sizes on a CPU."""
    scores = (q * q.shape[-1] ** -0.5) @ k.transpose(-1, -2)
    if mask is not None:
        scores.add_(mask)
    out: Tensor = scores.softmax(-1) @ v
    return out


def _initial(name: str, shape: Sequence[int], generator: torch.Generator) -> Tensor:
    if "channelwise_norm" in name or name.endswith("bias"):
        return torch.zeros(*shape)
    if "norm" in name and len(shape) == 1:
        return torch.ones(*shape)
    x = torch.randn(*shape, generator=generator)
    if name.endswith(("embed_tokens.weight", "beg_of_und_embed", "pos_embed")):
        return 0.02 * x if name.endswith("pos_embed") else 0.5 * x
    if name.endswith(("unpatch_conv.weight", "cond_embeds_mapper.weight", "lm_head.weight")):
        return 0.02 * x if "lm_head" in name else torch.zeros(*shape)
    ends_branch = name.endswith(("o_proj.weight", "down_proj.weight", "proj.weight", "fc2.weight", "linear_2.weight"))
    return (0.5 if ends_branch else 1.0) * x / math.sqrt(math.prod(shape[1:]))
