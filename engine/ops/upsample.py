"""Nearest-neighbor upsampling by 2, NHWC."""

from __future__ import annotations

import torch

from .base import Call, Given, define, normal


def reference(x: torch.Tensor) -> torch.Tensor:
    return x.float().repeat_interleave(2, dim=1).repeat_interleave(2, dim=2)


def example(generator: torch.Generator, dtype: torch.dtype, h: int, w: int, c: int) -> Call:
    return Call((normal(generator, 2, h, w, c, dtype=dtype),))


OP = define(
    "upsample_nearest",
    "x: T[B, H, W, C] -> y: T[B, 2*H, 2*W, C]",
    reference,
    cases=[dict(h=3, w=2, c=5)],
    example=example,
    rounding_steps=0.0,
)


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    b, h, w, c = call.x.shape
    call.y.view(b, h, 2, w, 2, c).copy_(call.x[:, :, None, :, None])
