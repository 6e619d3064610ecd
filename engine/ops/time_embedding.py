"""e = [cos(t f), sin(t f)], f_i = 10000^(-i / half): sinusoidal embedding of the flow time, cosine first."""

from __future__ import annotations

import math

import torch

from .base import Call, Given, define


def reference(t: torch.Tensor, C: int, dtype: torch.dtype) -> torch.Tensor:
    half = C // 2
    frequencies = torch.exp(-math.log(10000.0) * torch.arange(half, dtype=torch.float32, device=t.device) / half)
    angles = t.float()[..., None] * frequencies
    return torch.cat([angles.cos(), angles.sin()], dim=-1)


def example(generator: torch.Generator, dtype: torch.dtype, rows: int, steps: int, channels: int) -> Call:
    return Call((1000 * torch.rand(rows, steps, generator=generator),), dict(C=channels, dtype=dtype))


OP = define(
    "time_embedding",
    "t: f32[R, K] -> e: O[R, K, C]",
    reference,
    cases=[dict(rows=2, steps=3, channels=64), dict(rows=1, steps=1, channels=10)],
    example=example,
    flops="2*R*K*C",
)


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    call.e.copy_(reference(call.t, call.C, call.dtype))
