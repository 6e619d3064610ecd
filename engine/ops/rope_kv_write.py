"""q = RoPE(q); caches[slot] = RoPE(k), v: rotary embedding in the half-rotation layout, fused with the cache write.

[a, b] -> [a cos - b sin, b cos + a sin] over the halves of a head, angles from a table of cosines and sines by
position. The products are computed in the wider of the two dtypes: float32 tables round once, bfloat16 tables round
after each operation. Keys are rotated when they are written, so a cached key never changes again.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import SchemaError
from ..specs import Size
from .base import Call, Given, define, normal
from .schema import Bound


def split(qkv: torch.Tensor, heads: int, kv_heads: int) -> tuple[torch.Tensor, ...]:
    """(B, N, (H + 2G) D) -> q (B, N, H, D), k and v (B, N, G, D), views."""
    head_dim = qkv.shape[-1] // (heads + 2 * kv_heads)
    return torch.split(qkv.view(*qkv.shape[:2], -1, head_dim), [heads, kv_heads, kv_heads], dim=2)


def rotate(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """x (B, N, H, D) by angles (B, N, 1, 2, D/2)."""
    a, b = x.chunk(2, dim=-1)
    cos, sin = angles.unbind(-2)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], dim=-1)


def reference(
    qkv: torch.Tensor,
    table: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    k_cache: torch.Tensor,
    v_cache: torch.Tensor,
    heads: int,
) -> torch.Tensor:
    q, k, v = split(qkv.float(), heads, k_cache.shape[2])
    angles = table.float()[positions.long()][:, :, None]
    row = torch.arange(len(qkv), device=qkv.device)[:, None]
    k_cache[row, slots.long()] = rotate(k, angles).to(k_cache.dtype)
    v_cache[row, slots.long()] = v.to(v_cache.dtype)
    return rotate(q, angles)


def derive(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    head_dim, heads, kv_heads = 2 * bound["h"], attrs["heads"], bound["G"]
    if (heads + kv_heads * 2) * head_dim != bound["E"]:
        raise SchemaError(
            f"argument 'qkv' expected its last size to be (heads + 2 kv_heads) head_dim = "
            f"({heads} + 2*{kv_heads}) * {head_dim}, got {bound['E']}"
        )
    return {"H": heads, "D": head_dim}


def example(
    generator: torch.Generator, dtype: torch.dtype, b: int, n: int, heads: int, kv_heads: int, head_dim: int
) -> Call:
    qkv = normal(generator, b, n, (heads + 2 * kv_heads) * head_dim, dtype=dtype)
    angles = torch.randn(40, head_dim // 2, generator=generator)
    table = torch.stack([angles.cos(), angles.sin()], dim=1)
    positions = torch.randint(0, 40, (b, n), generator=generator, dtype=torch.int32)
    slots = torch.stack([torch.randperm(n + 3, generator=generator)[:n] for _ in range(b)]).int()
    # windows of a larger state, as the model's are
    caches = [normal(generator, b, n + 5, kv_heads, head_dim, dtype=dtype)[:, 1 : n + 4] for _ in range(2)]
    return Call((qkv, table, positions, slots, *caches), dict(heads=heads))


OP = define(
    "rope_kv_write",
    "qkv: T[B, N, E], table: W[M, 2, h], positions: i32[B, N], slots: i32[B, N], "
    "k_cache!: T[B, S, G, 2*h], v_cache!: T[B, S, G, 2*h] -> q: T[B, N, H, D]",
    reference,
    cases=[
        dict(b=2, n=5, heads=4, kv_heads=4, head_dim=32),
        dict(b=1, n=1, heads=6, kv_heads=2, head_dim=6),
        dict(b=1, n=2, heads=11, kv_heads=10, head_dim=128),
    ],
    example=example,
    derive=derive,
    read_bytes="2*B*N*E*T",
    flops="3*B*N*E",
)


def members(call: Given) -> dict[str, Any]:
    batch, tokens = call.positions.shape
    batch_stride, slot_stride = call.k_cache.stride()[:2]
    return dict(
        batch=batch,
        tokens=tokens,
        kv_heads=call.k_cache.shape[2],
        half=call.table.shape[2],
        cache_batch_stride=batch_stride,
        cache_slot_stride=slot_stride,
    )


def needs_f32_angles(call: Given) -> str | None:
    return None if call.table.dtype is torch.float32 else "takes angles in float32, not in bfloat16"


OP.kernel("native", members, needs_f32_angles)
OP.triton("rope_kv_write", needs_f32_angles)


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    k_cache, v_cache, slots = call.k_cache, call.v_cache, call.slots.long()
    q, k, v = split(call.qkv, call.heads, k_cache.shape[2])
    batch, n = slots.shape
    angles = call.table.index_select(0, call.positions.reshape(-1)).view(batch, n, 1, 2, -1)
    call.q.copy_(rotate(q, angles))
    k = rotate(k, angles).to(k_cache.dtype)
    for b in range(batch):  # caches are slices of a larger state, so rows cannot be flattened into one index
        k_cache[b].index_copy_(0, slots[b], k[b])
        v_cache[b].index_copy_(0, slots[b], v[b])
