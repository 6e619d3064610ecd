"""y = x / sqrt(mean(x^2) + eps) * weight, and the same after a residual add.

The mean is taken in float32. The normalized x is rounded to the weight's dtype before the product, as Llama's RMSNorm
does: float32 weights round once, bfloat16 weights round after each operation.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..device import native
from .base import Bound, Call, Op, Schema, normal, quiet, register
from .dims import rows_of
from .refusals import WARPS, native_for_f32, triton_for_f32


def normalize(x: torch.Tensor, weight: torch.Tensor, eps: float) -> torch.Tensor:
    """RMSNorm over the last axis; float32 inside, the result in the weight's dtype."""
    x = x.float()
    rms = torch.linalg.vector_norm(x, dim=-1, keepdim=True).square_().div_(x.shape[-1]).add_(eps).rsqrt_()
    normed: torch.Tensor = (x * rms).to(weight.dtype) * weight
    return normed


def reference(x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype) -> torch.Tensor:
    x = x.float()
    return x * torch.rsqrt(x.square().mean(-1, keepdim=True) + eps) * weight.float()


def reference_add(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x.float() + delta.float()
    return total, reference(total.to(x.dtype), weight, eps, dtype)


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 4 * rows_of(bound) * int(bound["C"])


def example(generator: torch.Generator, dtype: torch.dtype, m: int, c: int, eps_decides: bool = False) -> Call:
    x = normal(generator, m, 3, c) * 5
    if eps_decides:
        quiet(x)
    return Call((x, 1 + 0.1 * normal(generator, c)), dict(eps=1e-6, dtype=dtype))


def example_add(generator: torch.Generator, dtype: torch.dtype, m: int, c: int, eps_decides: bool = False) -> Call:
    x = 5 * normal(generator, m, 3, c + 8)[..., :c]  # rows further apart than they are long
    delta = normal(generator, m, 3, c, dtype=dtype)
    if eps_decides:
        quiet(x, 0.5)
        delta[0], delta[-1] = -0.5, 0
    return Call((x, delta, 1 + 0.1 * normal(generator, c)), dict(eps=1e-6, dtype=dtype))


CASES = [dict(m=1, c=64), dict(m=5, c=1000), dict(m=2, c=7), dict(m=3, c=96, eps_decides=True)]
RMS_NORM = register(
    Op(
        "rms_norm",
        Schema.parse("x: X[*, C], weight: W[C] -> y: O[*, C]"),
        reference,
        flops,
        CASES,
        example,
    )
)
ADD_RMS_NORM = register(
    Op(
        "add_rms_norm",
        Schema.parse("x: X[*, C], delta: T[*, C], weight: W[C] -> total: X[*, C], y: O[*, C]"),
        reference_add,
        flops,
        CASES,
        example_add,
    )
)


@RMS_NORM.implementation("native", native_for_f32(1))
def run_native(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, *, eps: float, dtype: torch.dtype) -> None:
    normalize_native(x, None, weight, None, y, eps)


@ADD_RMS_NORM.implementation("native", native_for_f32(2))
def run_add_native(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
) -> None:
    normalize_native(x, delta, weight, total, y, eps)


def normalize_native(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    total: torch.Tensor | None,
    y: torch.Tensor,
    eps: float,
    scale: torch.Tensor | None = None,
) -> None:
    """RMSNorm of x, or of x + delta = total, into y, whose rows may be apart; with a scale, y is int8."""
    x, delta = x.contiguous(), None if delta is None else delta.contiguous()
    rows, channels = x.numel() // x.shape[-1], x.shape[-1]
    native.run(
        "rms_norm",
        x=x,
        delta=delta,
        weight=weight,
        total=total,
        y=y,
        scale=scale,
        x_dtype=x.dtype,
        delta_dtype=x.dtype if delta is None else delta.dtype,
        y_dtype=y.dtype if scale is None else torch.float32,
        eps=eps,
        rows=rows,
        channels=channels,
        y_stride=y.stride(-2) if rows > 1 else channels,
    )


@RMS_NORM.implementation("triton", triton_for_f32(1, row=True), tunables=WARPS)
def run_triton(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, *, eps: float, dtype: torch.dtype) -> None:
    from ...triton_kernels.rms_norm import launch

    launch(x, weight, y, eps)


@ADD_RMS_NORM.implementation("triton", triton_for_f32(2, row=True), tunables=WARPS)
def run_add_triton(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
) -> None:
    from ...triton_kernels.rms_norm import launch_add

    launch_add(x, delta, weight, total, y, eps)


@RMS_NORM.implementation("torch")
def run_torch(x: torch.Tensor, weight: torch.Tensor, y: torch.Tensor, *, eps: float, dtype: torch.dtype) -> None:
    y.copy_(normalize(x, weight, eps))


@ADD_RMS_NORM.implementation("torch")
def run_add_torch(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
) -> None:
    torch.add(x, delta, out=total)
    y.copy_(normalize(total, weight, eps))
