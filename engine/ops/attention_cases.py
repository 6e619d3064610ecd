"""The rule for which keys a query sees, and calls of the attention op whose results depend on it."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from .base import Call, normal


def visible(kv_start: torch.Tensor, kv_end: torch.Tensor, slots: torch.Tensor, keys: torch.Tensor) -> torch.Tensor:
    """The rule as a boolean mask (B, N, len(keys)) over the key indices `keys`."""
    return ((keys >= kv_start[:, None, None]) & (keys < kv_end[:, :, None])) | (keys == slots[:, :, None])


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    b: int,
    n: int,
    s: int,
    heads: int,
    kv_heads: int,
    head_dim: int,
    rule: str,
    starts: Sequence[int] = (),  # those of the first rows; the others are drawn
) -> Call:
    q = normal(generator, b, n, heads, head_dim, dtype=dtype)
    k, v = (normal(generator, b, s, kv_heads, head_dim, dtype=dtype) for _ in range(2))
    attrs = dict(scale=head_dim**-0.5, causal=rule in ("causal", "cached", "guided"))
    if rule == "all":
        return Call((q, k, v, None, None, None), attrs)
    first = (s - n) // 2 if rule == "cached" else s - n
    slots = (first + torch.arange(n)).expand(b, n).int().contiguous()
    start = torch.randint(0, s, (b,), generator=generator, dtype=torch.int32)
    if rule == "gap":
        start[0] = 3
    start[: len(starts)] = torch.tensor(starts, dtype=torch.int32)
    if rule == "guided":  # a prompt's last token and the time token lie before; of the unconditional rows', only these
        start[: b // 2] %= first - 2
        start[b // 2 :] = first - 2
    end = {
        "prefix": torch.full_like(slots, first),
        "gap": torch.full_like(slots, first // 2),
        "block": torch.where(torch.arange(n) >= n // 2, s, slots + 1).int(),
    }.get(rule, slots + 1)
    unseen = ~visible(start, end, slots, torch.arange(s)).any(1)
    for t in (k, v):  # a slot that no query sees may hold anything
        t[unseen] = torch.nan
    return Call((q, k, v, start, end, slots), attrs)


CASES: list[dict[str, Any]] = [
    dict(b=2, n=7, s=7, heads=2, kv_heads=2, head_dim=32, rule="all"),
    dict(b=3, n=17, s=29, heads=4, kv_heads=4, head_dim=16, rule="causal"),
    dict(b=2, n=5, s=40, heads=4, kv_heads=2, head_dim=8, rule="prefix"),
    dict(b=2, n=16, s=31, heads=3, kv_heads=1, head_dim=64, rule="block"),
    dict(b=2, n=1, s=65, heads=2, kv_heads=2, head_dim=128, rule="causal"),
    dict(b=2, n=1, s=200, heads=4, kv_heads=2, head_dim=72, rule="prefix"),
    dict(b=1, n=1, s=40, heads=2, kv_heads=1, head_dim=200, rule="causal"),
    dict(b=1, n=1, s=21, heads=2, kv_heads=1, head_dim=37, rule="causal"),
    # longer than a tile of queries or keys, or than one of a row's shares of keys
    dict(b=2, n=70, s=150, heads=2, kv_heads=1, head_dim=16, rule="causal"),
    dict(b=2, n=130, s=200, heads=1, kv_heads=1, head_dim=32, rule="guided"),
    dict(b=3, n=66, s=140, heads=1, kv_heads=1, head_dim=40, rule="cached"),
    dict(b=2, n=65, s=180, heads=1, kv_heads=1, head_dim=16, rule="gap"),
    dict(b=2, n=97, s=170, heads=1, kv_heads=1, head_dim=16, rule="block"),
    dict(b=1, n=81, s=81, heads=2, kv_heads=2, head_dim=64, rule="all"),
    dict(b=1, n=65, s=80, heads=1, kv_heads=1, head_dim=128, rule="guided"),
    dict(b=1, n=1, s=150, heads=2, kv_heads=1, head_dim=64, rule="all"),
    dict(b=4, n=1, s=520, heads=1, kv_heads=1, head_dim=16, rule="cached"),
    dict(b=4, n=1, s=300, heads=1, kv_heads=1, head_dim=16, rule="gap"),
    dict(b=1, n=33, s=33, heads=1, kv_heads=1, head_dim=288, rule="all"),
    # several blocks of keys
    dict(b=1, n=70, s=600, heads=2, kv_heads=1, head_dim=96, rule="causal"),
    dict(b=2, n=40, s=620, heads=1, kv_heads=1, head_dim=32, rule="gap"),
    dict(b=1, n=300, s=300, heads=1, kv_heads=1, head_dim=64, rule="all"),
    # padding of more than a block, another in each row; queries in it, own keys far out of range
    dict(b=2, n=230, s=230, heads=1, kv_heads=1, head_dim=32, rule="causal", starts=(65, 200)),
    dict(b=2, n=20, s=330, heads=1, kv_heads=1, head_dim=32, rule="gap", starts=(70, 120)),
    dict(b=3, n=1, s=460, heads=1, kv_heads=1, head_dim=32, rule="causal", starts=(65, 257, 459)),
    dict(b=3, n=1, s=460, heads=1, kv_heads=1, head_dim=32, rule="gap", starts=(65, 193, 300)),
]
