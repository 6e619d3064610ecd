"""The layers of the language model, a Llama."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import nn
from torch.utils.checkpoint import checkpoint

from flashjanus.checkpoint import LanguageConfig

from .uvit import RMSNorm


class KeysAndValues(Protocol):
    """update(k, v, layer) appends keys and values (B, G, N, D) of new tokens and returns those of all tokens."""

    def update(self, k: torch.Tensor, v: torch.Tensor, layer_idx: int) -> tuple[torch.Tensor, torch.Tensor]: ...


def rotations(positions: torch.Tensor, config: LanguageConfig) -> tuple[torch.Tensor, torch.Tensor]:
    """The cosines and sines (B, 1, N, head_dim) of positions (B, N), in float32."""
    exponent = torch.arange(0, config.head_dim, 2, dtype=torch.float32, device=positions.device) / config.head_dim
    angles = positions[:, None, :, None].float() * (1.0 / config.rope_theta**exponent)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def rotated(x: torch.Tensor, cos: torch.Tensor, sin: torch.Tensor) -> torch.Tensor:
    """x (B, H, N, D) with its two halves rotated as RoPE does."""
    a, b = x.chunk(2, -1)
    return (x * cos + torch.cat([-b, a], -1) * sin).to(x.dtype)


class Attention(nn.Module):
    def __init__(self, config: LanguageConfig, layer_idx: int) -> None:
        super().__init__()
        c = config
        self.layer_idx, self.heads, self.kv_heads, self.head_dim = (
            *(layer_idx, c.num_attention_heads),
            *(c.num_key_value_heads, c.head_dim),
        )
        self.q_proj = nn.Linear(c.hidden_size, c.num_attention_heads * c.head_dim, bias=False)
        self.k_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.v_proj = nn.Linear(c.hidden_size, c.num_key_value_heads * c.head_dim, bias=False)
        self.o_proj = nn.Linear(c.num_attention_heads * c.head_dim, c.hidden_size, bias=False)

    def forward(
        self,
        x: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: KeysAndValues | None,
        weights: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        """x: (B, N, D). mask: (B, 1, N, S), true where a key is seen; None is causal. weights: a list that receives the
        attention weights."""
        b, n, _ = x.shape

        def heads(y: torch.Tensor) -> torch.Tensor:
            return y.view(b, n, -1, self.head_dim).transpose(1, 2)

        q, k, v = heads(self.q_proj(x)), heads(self.k_proj(x)), heads(self.v_proj(x))
        q, k = rotated(q, *turns), rotated(k, *turns)
        if cache is not None:
            k, v = cache.update(k, v, self.layer_idx)
        group = self.heads // self.kv_heads
        if group > 1:
            k, v = k.repeat_interleave(group, 1), v.repeat_interleave(group, 1)
        if weights is not None:
            if mask is None:
                mask = torch.ones(n, k.shape[2], dtype=torch.bool, device=x.device).tril(k.shape[2] - n)
            scores = (q @ k.transpose(2, 3)).float() * self.head_dim**-0.5
            weights.append(scores.masked_fill(~mask, -torch.inf).softmax(-1).to(q.dtype))
            out = weights[-1] @ v
        else:
            out = F.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None and n > 1)
        mixed: torch.Tensor = self.o_proj(out.transpose(1, 2).reshape(b, n, -1))
        return mixed


class Mlp(nn.Module):
    def __init__(self, config: LanguageConfig) -> None:
        super().__init__()
        self.gate_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.up_proj = nn.Linear(config.hidden_size, config.intermediate_size, bias=False)
        self.down_proj = nn.Linear(config.intermediate_size, config.hidden_size, bias=False)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        out: torch.Tensor = self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))
        return out


class DecoderLayer(nn.Module):
    def __init__(self, config: LanguageConfig, layer_idx: int) -> None:
        super().__init__()
        self.self_attn = Attention(config, layer_idx)
        self.mlp = Mlp(config)
        self.input_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)
        self.post_attention_layernorm = RMSNorm(config.hidden_size, config.rms_norm_eps)

    def forward(
        self,
        x: torch.Tensor,
        turns: tuple[torch.Tensor, torch.Tensor],
        mask: torch.Tensor | None,
        cache: KeysAndValues | None,
        weights: list[torch.Tensor] | None = None,
    ) -> torch.Tensor:
        x = x + self.self_attn(self.input_layernorm(x), turns, mask, cache, weights)
        out: torch.Tensor = x + self.mlp(self.post_attention_layernorm(x))
        return out


def visible_keys(
    mask: torch.Tensor | None, rows: int, past: int, new: int, device: torch.device
) -> torch.Tensor | None:
    """A mask (rows, 1, new, past + new) that is true where a query sees a key, or None if the causal mask is enough.

    mask: (rows, past + new), 0 where a key is hidden. A query always sees its own key, so that no row is empty.
    """
    if mask is None or bool(mask.bool().all()):
        if past == 0 or new == 1:
            return None
        mask = torch.ones(rows, past + new, device=device)
    causal = torch.ones(new, past + new, dtype=torch.bool, device=device).tril(past)
    own = torch.eye(new, past + new, dtype=torch.bool, device=device).roll(past, 1)
    return ((causal & mask.bool()[:, None]) | own)[:, None]


def through_layers(
    layers: nn.ModuleList,
    config: LanguageConfig,
    x: torch.Tensor,
    positions: torch.Tensor,
    mask: torch.Tensor | None,
    cache: KeysAndValues | None,
    *,
    hidden: list[torch.Tensor] | None = None,
    attentions: list[torch.Tensor] | None = None,
    recompute: bool = False,
) -> torch.Tensor:
    """The residual stream x (B, N, D) after all layers. hidden: a list that receives the stream before each layer."""
    turns = rotations(positions, config)
    turns = (turns[0].to(x.dtype), turns[1].to(x.dtype)) if x.dtype is torch.float64 else turns
    for layer in layers:
        if hidden is not None:
            hidden.append(x)
        run: Callable[..., torch.Tensor] = layer
        if recompute:
            x = checkpoint(run, x, turns, mask, cache, attentions, use_reentrant=False)
        else:
            x = run(x, turns, mask, cache, attentions)
    return x
