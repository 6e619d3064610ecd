"""y = silu(GroupNorm(x)) on NHWC tensors, or the norm alone; statistics in float32."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..device import native
from ..specs import TensorSpec, static
from .base import Bound, Call, Op, Schema, normal, quiet, register
from .dims import elements
from .refusals import MAX_NORM_CHANNELS, native_for_f32, triton_for_f32


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, groups: int, eps: float, silu: bool
) -> torch.Tensor:
    b, h, w, c = x.shape
    g = x.float().view(b, h * w, groups, c // groups)
    centered = g - g.mean((1, 3), keepdim=True)
    y = centered * torch.rsqrt(centered.square().mean((1, 3), keepdim=True) + eps)
    y = y.view(b, h, w, c) * weight.float() + bias.float()
    return y * torch.sigmoid(y) if silu else y


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 10 * elements(bound, "B", "H", "W", "C")


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


OP = register(
    Op(
        "group_norm_silu",
        Schema.parse("x: T[B, H, W, C], weight: W0[C], bias: W0[C] -> y: T[B, H, W, C]"),
        reference,
        flops,
        cases=[
            dict(size=5, c=32, groups=8, silu=True),
            dict(size=3, c=6, groups=3, silu=False),
            dict(size=1, c=40, groups=1, silu=True),
            dict(size=13, c=96, groups=32, silu=True),
            dict(size=4, c=150, groups=10, silu=True),
            dict(size=4, c=96, groups=32, silu=False, eps_decides=True),
        ],
        example=example,
    )
)


MAX_GROUPS = 128
"""Limit: kMaxNormGroups of csrc/cpu/group_norm_silu.h."""


def _refuses_native(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    if specs and specs[0] is not None and static(specs[0].shape[-1]) > MAX_NORM_CHANNELS:
        return f"takes at most {MAX_NORM_CHANNELS} channels"
    if attrs.get("groups", 1) > MAX_GROUPS:
        return f"takes at most {MAX_GROUPS} groups"
    return native_for_f32(1)(device, specs, attrs)


@OP.implementation("native", _refuses_native)
def run_native(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    y: torch.Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool,
) -> None:
    batch, height, width, channels = x.shape
    native.run(
        "group_norm_silu",
        x=x.contiguous(),
        weight=weight,
        bias=bias,
        y=y,
        dtype=x.dtype,
        eps=eps,
        silu=silu,
        batch=batch,
        positions=height * width,
        channels=channels,
        groups=groups,
    )


MAX_TRITON_GROUP = 32
"""Limit: MAX_GROUP of triton_kernels/group_norm_silu.py."""


def _refuses_triton(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    if specs and specs[0] is not None and static(specs[0].shape[-1]) > MAX_TRITON_GROUP * attrs["groups"]:
        return f"takes at most {MAX_TRITON_GROUP} channels a group"
    return triton_for_f32(1)(device, specs, attrs)


@OP.implementation("triton", _refuses_triton)
def run_triton(*tensors: Any, **attrs: Any) -> None:
    from ...triton_kernels.group_norm_silu import launch

    launch(*tensors, **attrs)


@OP.implementation("torch")
def run_torch(
    x: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    y: torch.Tensor,
    *,
    groups: int,
    eps: float,
    silu: bool,
) -> None:
    normed = F.group_norm(x.permute(0, 3, 1, 2).to(weight.dtype), groups, weight, bias, eps).permute(0, 2, 3, 1)
    y.copy_(F.silu(normed, inplace=True) if silu else normed)
