"""Global response normalization in two passes: GELU with the sums of squares per channel, then the scaling.

y = gelu(x), s_c = sum_p y_pc^2;  then  n_c = sqrt(s_c) / (mean_c sqrt(s_c) + 1e-6),  o = bias + (weight n_c + 1) y.
An image's sums run over all its positions, so scaling cannot start before they are complete: there are two ops.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ... import triton_kernels
from ..device import native
from ..specs import TensorSpec
from .activations import reference_gelu
from .base import Bound, Call, Op, Schema, normal, register
from .dims import elements
from .refusals import native_for_f32, triton_for_f32


def reference_stats(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = reference_gelu(x)
    return y, y.square().sum(1)


def reference_apply(y: torch.Tensor, sumsq: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    g = sumsq.sqrt()
    n = g / (g.mean(-1, keepdim=True) + 1e-6)
    return bias.float() + (weight.float() * n[:, None] + 1) * y.float()


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 8 * elements(bound, "B", "P", "C")


def example_stats(generator: torch.Generator, dtype: torch.dtype, b: int, p: int, c: int) -> Call:
    return Call((2 * normal(generator, b, p, c).to(dtype),))


def example_apply(
    generator: torch.Generator, dtype: torch.dtype, b: int, p: int, c: int, eps_decides: bool = False
) -> Call:
    y = normal(generator, b, p, c, dtype=dtype)
    sums = y.float().square().sum(1)
    if eps_decides:  # sums of y as it would be 1e-6 times as large: the formula takes either as it comes
        sums[0] = 0
        sums[-1] *= 1e-12 / p
    return Call((y, sums, 0.3 * normal(generator, c), 0.3 * normal(generator, c)))


CASES = [dict(b=2, p=36, c=64), dict(b=1, p=5, c=7), dict(b=3, p=1, c=40), dict(b=2, p=70, c=1100)]
STATS = register(
    Op(
        "gelu_grn_stats",
        Schema.parse("x: T[B, P, C] -> y: T[B, P, C], sumsq: f32[B, C]"),
        reference_stats,
        flops,
        CASES,
        example_stats,
        rounding_steps=4.0,
        computed_from={"sumsq": "y"},
    )
)
APPLY = register(
    Op(
        "grn_apply",
        Schema.parse("y: T[B, P, C], sumsq: f32[B, C], weight: W[C], bias: W[C] -> o: T[B, P, C]"),
        reference_apply,
        flops,
        [*CASES, dict(b=3, p=4, c=40, eps_decides=True)],
        example_apply,
    )
)


def _refuses_native(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return native.refuses(device, *(spec.dtype for spec in specs if spec is not None))


@STATS.implementation("native", _refuses_native)
def run_stats_native(x: torch.Tensor, y: torch.Tensor, sumsq: torch.Tensor) -> None:
    batch, positions, channels = x.shape
    native.run(
        "gelu_grn_stats",
        x=x.contiguous(),
        y=y,
        sumsq=sumsq,
        dtype=x.dtype,
        batch=batch,
        positions=positions,
        channels=channels,
    )


@APPLY.implementation("native", native_for_f32(2))
def run_apply_native(
    y: torch.Tensor, sumsq: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, o: torch.Tensor
) -> None:
    batch, positions, channels = y.shape
    native.run(
        "grn_apply",
        y=y.contiguous(),
        sumsq=sumsq.contiguous(),
        weight=weight,
        bias=bias,
        o=o,
        dtype=y.dtype,
        batch=batch,
        positions=positions,
        channels=channels,
    )


def _refuses_triton(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return triton_kernels.refuses(device)


@STATS.implementation("triton", _refuses_triton)
def run_stats_triton(x: torch.Tensor, y: torch.Tensor, sumsq: torch.Tensor) -> None:
    from ...triton_kernels.grn import launch_stats

    launch_stats(x, y, sumsq)


@APPLY.implementation("triton", triton_for_f32(2, row=True))
def run_apply_triton(
    y: torch.Tensor, sumsq: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, o: torch.Tensor
) -> None:
    from ...triton_kernels.grn import launch_apply

    launch_apply(y, sumsq, weight, bias, o)


@STATS.implementation("torch")
def run_stats(x: torch.Tensor, y: torch.Tensor, sumsq: torch.Tensor) -> None:
    torch.ops.aten.gelu.out(x, out=y)
    torch.linalg.vector_norm(y, dim=1, dtype=torch.float32, out=sumsq)
    sumsq.square_()


@APPLY.implementation("torch")
def run_apply(y: torch.Tensor, sumsq: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor, o: torch.Tensor) -> None:
    g = sumsq.sqrt().to(weight.dtype)
    n = g / (g.mean(-1, keepdim=True) + 1e-6)
    scale = (weight * n + 1)[:, None]
    o.copy_(torch.addcmul(bias, scale, y.to(weight.dtype)))
