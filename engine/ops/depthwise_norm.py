"""y = RMSNorm(depthwise7x7(x) + b) over channels: the first part of a ConvNeXt block, NHWC, zero padding 3."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from .base import Call, Given, define, normal, quiet
from .refusals import MAX_NORM_CHANNELS, channels_of, rounds_once
from .rms_norm import normalize
from .rms_norm import reference as rms_reference


def depthwise(x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor | None) -> torch.Tensor:
    """x (B, H, W, C), weight (7, 7, C) -> (B, H, W, C)."""
    kernel = weight.permute(2, 0, 1)[:, None]
    return F.conv2d(x.permute(0, 3, 1, 2), kernel, bias, padding=3, groups=x.shape[-1]).permute(0, 2, 3, 1)


def reference(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor | None,
    norm: torch.Tensor,
    eps: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    y = depthwise(x.float(), weight.float(), None if bias is None else bias.float())
    return rms_reference(y, norm, eps, dtype)


def example(
    generator: torch.Generator, dtype: torch.dtype, size: int, channels: int, bias: bool, eps_decides: bool = False
) -> Call:
    x = normal(generator, 2, size, size + 2, channels)
    if eps_decides:  # without a bias
        quiet(x)
    weight = (normal(generator, 7, 7, channels) / 7).to(dtype)
    b = normal(generator, channels, dtype=dtype) if bias else None
    return Call((x, weight, b, 1 + 0.1 * normal(generator, channels)), dict(eps=1e-6, dtype=dtype))


OP = define(
    "depthwise_norm",
    "x: X[B, H, W, C], weight: T[7, 7, C], bias?: T[C], norm: W0[C] -> y: O[B, H, W, C]",
    reference,
    cases=[
        dict(size=9, channels=32, bias=True),
        dict(size=3, channels=5, bias=False),
        dict(size=1, channels=40, bias=True),
        dict(size=16, channels=129, bias=True),
        dict(size=9, channels=32, bias=False, eps_decides=True),
    ],
    example=example,
    flops="98*B*H*W*C + 4*B*H*W*C",
)


def members(call: Given) -> dict[str, Any]:
    return dict(zip(("batch", "height", "width", "channels"), call.x.shape, strict=True))


def large(call: Given) -> str | None:
    many = channels_of(call.x) > MAX_NORM_CHANNELS
    return f"takes at most {MAX_NORM_CHANNELS} channels" if many else rounds_once(call.norm)


OP.kernel("native", members, large)
OP.kernel("cuda", members, large)


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    # In x's dtype: a float32 stream is rounded neither before the convolution nor between it and the norm.
    x, bias = call.x, call.bias
    y = depthwise(x, call.weight.to(x.dtype), None if bias is None else bias.to(x.dtype))
    call.y.copy_(normalize(y, call.norm, call.eps))
