"""y = silu(GroupNorm(x)) on NHWC tensors, or the norm alone; statistics in float32."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .base import Call, Given, define, normal, quiet
from .refusals import MAX_NORM_CHANNELS, channels_of, rounds_once


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float, silu: bool
) -> torch.Tensor:
    b, h, w, c = x.shape
    g = x.float().view(b, h * w, groups, c // groups)
    centered = g - g.mean((1, 3), keepdim=True)
    y = centered * torch.rsqrt(centered.square().mean((1, 3), keepdim=True) + eps)
    y = y.view(b, h, w, c) * weight.float() + bias.float()
    return y * torch.sigmoid(y) if silu else y


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    size: int,
    c: int,
    groups: int,
    silu: bool,
    eps_decides: bool = False,
) -> Call:
    x = (2 * normal(generator, 2, size, size + 1, c) + 1).to(dtype)
    if eps_decides:
        quiet(x)  # zeros: the mean of another constant may round
    attrs = dict(groups=groups, eps=1e-6, silu=silu)
    return Call((x, 1 + 0.1 * normal(generator, c), normal(generator, c)), attrs)


OP = define(
    "group_norm_silu",
    "x: T[B, H, W, C], weight: W0[C], bias: W0[C] -> y: T[B, H, W, C]",
    reference,
    cases=[
        dict(size=5, c=32, groups=8, silu=True),
        dict(size=3, c=6, groups=3, silu=False),
        dict(size=1, c=40, groups=1, silu=True),
        dict(size=13, c=96, groups=32, silu=True),
        dict(size=4, c=150, groups=10, silu=True),
        dict(size=4, c=96, groups=32, silu=False, eps_decides=True),
    ],
    example=example,
    flops="10*B*H*W*C",
)


MAX_GROUPS = 128
"""Limit: kMaxNormGroups of csrc/cpu/group_norm_silu.h."""


MAX_TRITON_GROUP = 32
"""Limit: MAX_GROUP of triton_kernels/group_norm_silu.py."""


def members(call: Given) -> dict[str, Any]:
    batch, height, width, channels = call.x.shape
    return dict(batch=batch, positions=height * width, channels=channels)


def large(call: Given) -> str | None:
    if channels_of(call.x) > MAX_NORM_CHANNELS:
        return f"takes at most {MAX_NORM_CHANNELS} channels"
    if call.groups > MAX_GROUPS:
        return f"takes at most {MAX_GROUPS} groups"
    return rounds_once(call.weight)


def large_for_triton(call: Given) -> str | None:
    if channels_of(call.x) > MAX_TRITON_GROUP * call.groups:
        return f"takes at most {MAX_TRITON_GROUP} channels a group"
    return rounds_once(call.weight)


OP.kernel("native", members, large)
OP.triton("group_norm_silu", large_for_triton)


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    x, weight = call.x.permute(0, 3, 1, 2).to(call.weight.dtype), call.weight
    normed = F.group_norm(x, call.groups, weight, call.bias, call.eps).permute(0, 2, 3, 1)
    call.y.copy_(F.silu(normed, inplace=True) if call.silu else normed)
