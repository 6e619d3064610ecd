"""y = (x - mean) / sqrt(var + eps) * weight + bias in float32, and the same after a residual add."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import torch.nn.functional as F

from ..device import native
from .base import Bound, Call, Op, Schema, normal, quiet, register
from .dims import rows_of
from .refusals import WARPS, native_for_f32, triton_for_f32


def reference(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, dtype: torch.dtype
) -> torch.Tensor:
    x = x.float()
    centered = x - x.mean(-1, keepdim=True)
    return centered * torch.rsqrt(centered.square().mean(-1, keepdim=True) + eps) * weight.float() + bias.float()


def reference_add(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    total = x.float() + delta.float()
    return total, reference(total.to(x.dtype), weight, bias, eps, dtype)


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 7 * rows_of(bound) * int(bound["C"])


def example(generator: torch.Generator, dtype: torch.dtype, m: int, c: int, eps_decides: bool = False) -> Call:
    x = 3 * normal(generator, m, 2, c) + 1
    if eps_decides:
        quiet(x, 2.0)
    return Call((x, 1 + 0.1 * normal(generator, c), normal(generator, c)), dict(eps=1e-6, dtype=dtype))


def example_add(generator: torch.Generator, dtype: torch.dtype, m: int, c: int, eps_decides: bool = False) -> Call:
    x, delta = 3 * normal(generator, m, 2, c) + 1, normal(generator, m, 2, c, dtype=dtype)
    if eps_decides:
        quiet(x, 2.5)
        delta[0], delta[-1] = -0.5, 0
    return Call((x, delta, 1 + 0.1 * normal(generator, c), normal(generator, c)), dict(eps=1e-6, dtype=dtype))


CASES = [dict(m=1, c=64), dict(m=3, c=1001), dict(m=3, c=96, eps_decides=True)]
LAYER_NORM = register(
    Op(
        "layer_norm",
        Schema.parse("x: X[*, C], weight: W[C], bias: W[C] -> y: O[*, C]"),
        reference,
        flops,
        CASES,
        example,
    )
)
ADD_LAYER_NORM = register(
    Op(
        "add_layer_norm",
        Schema.parse("x: X[*, C], delta: T[*, C], weight: W[C], bias: W[C] -> total: X[*, C], y: O[*, C]"),
        reference_add,
        flops,
        CASES,
        example_add,
    )
)


@LAYER_NORM.implementation("native", native_for_f32(1))
def run_native(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, y: torch.Tensor, *, eps: float, dtype: torch.dtype
) -> None:
    _run_native(x, None, weight, bias, None, y, eps)


@ADD_LAYER_NORM.implementation("native", native_for_f32(2))
def run_add_native(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    total: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
) -> None:
    _run_native(x, delta, weight, bias, total, y, eps)


def _run_native(
    x: torch.Tensor,
    delta: torch.Tensor | None,
    weight: torch.Tensor,
    bias: torch.Tensor,
    total: torch.Tensor | None,
    y: torch.Tensor,
    eps: float,
) -> None:
    x, delta = x.contiguous(), None if delta is None else delta.contiguous()
    native.run(
        "layer_norm",
        x=x,
        delta=delta,
        weight=weight,
        bias=bias,
        total=total,
        y=y,
        x_dtype=x.dtype,
        delta_dtype=x.dtype if delta is None else delta.dtype,
        y_dtype=y.dtype,
        eps=eps,
        rows=x.numel() // x.shape[-1],
        channels=x.shape[-1],
    )


@LAYER_NORM.implementation("triton", triton_for_f32(1, row=True), tunables=WARPS)
def run_triton(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, y: torch.Tensor, *, eps: float, dtype: torch.dtype
) -> None:
    from ...triton_kernels.layer_norm import launch

    launch(x, weight, bias, y, eps)


@ADD_LAYER_NORM.implementation("triton", triton_for_f32(2, row=True), tunables=WARPS)
def run_add_triton(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    total: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
) -> None:
    from ...triton_kernels.layer_norm import launch_add

    launch_add(x, delta, weight, bias, total, y, eps)


@LAYER_NORM.implementation("torch")
def run_torch(
    x: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, y: torch.Tensor, *, eps: float, dtype: torch.dtype
) -> None:
    y.copy_(F.layer_norm(x.to(weight.dtype), (x.shape[-1],), weight, bias, eps))


@ADD_LAYER_NORM.implementation("torch")
def run_add_torch(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    bias: torch.Tensor,
    total: torch.Tensor,
    y: torch.Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
) -> None:
    torch.add(x, delta, out=total)
    run_torch(total, weight, bias, y, eps=eps, dtype=dtype)
