"""Global response normalization in two passes: GELU with the sums of squares per channel, then the scaling.

y = gelu(x), s_c = sum_p y_pc^2;  then  n_c = sqrt(s_c) / (mean_c sqrt(s_c) + 1e-6),  o = bias + (weight n_c + 1) y.
An image's sums run over all its positions, so scaling cannot start before they are complete: there are two ops.
"""

from __future__ import annotations

from typing import Any

import torch

from .activations import reference_gelu
from .base import Call, Given, define, normal
from .refusals import for_f32


def reference_stats(x: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    y = reference_gelu(x)
    return y, y.square().sum(1)


def reference_apply(y: torch.Tensor, sumsq: torch.Tensor, weight: torch.Tensor, bias: torch.Tensor) -> torch.Tensor:
    g = sumsq.sqrt()
    n = g / (g.mean(-1, keepdim=True) + 1e-6)
    return bias.float() + (weight.float() * n[:, None] + 1) * y.float()


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
STATS = define(
    "gelu_grn_stats",
    "x: T[B, P, C] -> y: T[B, P, C], sumsq: f32[B, C]",
    reference_stats,
    CASES,
    example_stats,
    rounding_steps=4.0,
    computed_from={"sumsq": "y"},
    flops="8*B*P*C",
)
APPLY = define(
    "grn_apply",
    "y: T[B, P, C], sumsq: f32[B, C], weight: W[C], bias: W[C] -> o: T[B, P, C]",
    reference_apply,
    [*CASES, dict(b=3, p=4, c=40, eps_decides=True)],
    example_apply,
    flops="8*B*P*C",
)


def members(call: Given) -> dict[str, Any]:
    return dict(zip(("batch", "positions", "channels"), call.y.shape, strict=True))


STATS.kernel("native", members)
STATS.triton("grn", launch="launch_stats")
APPLY.kernel("native", members, for_f32("weight"))
APPLY.triton("grn", for_f32("weight", row="y"), launch="launch_apply")


@STATS.implementation("torch")
def run_stats(call: Given) -> None:
    torch.ops.aten.gelu.out(call.x, out=call.y)
    torch.linalg.vector_norm(call.y, dim=1, dtype=torch.float32, out=call.sumsq)
    call.sumsq.square_()


@APPLY.implementation("torch")
def run_apply(call: Given) -> None:
    weight = call.weight
    g = call.sumsq.sqrt().to(weight.dtype)
    n = g / (g.mean(-1, keepdim=True) + 1e-6)
    scale = (weight * n + 1)[:, None]
    call.o.copy_(torch.addcmul(call.bias, scale, call.y.to(weight.dtype)))
