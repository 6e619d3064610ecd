"""RMSNorm, alone and after a residual add, into 8 bits with a scale for each row: see formats/rows.py.

Inputs of a `linear` that multiplies 8 bits by 8 bits; `dtype` is q's. The weight is float32: nothing is rounded
between the norm and q.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..formats import rows
from . import quantize
from .base import Bound, Call, Op, Schema, normal, quiet, register
from .dims import rows_of
from .refusals import WARPS
from .rms_norm import normalize, normalize_native
from .rms_norm import reference as rms_reference


def reference(
    x: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.reference(rms_reference(x, weight, eps, torch.float32), dtype)


def reference_add(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float, dtype: torch.dtype
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = x.float() + delta.float()
    return total, *reference(total.to(x.dtype), weight, eps, dtype)


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 7 * rows_of(bound) * int(bound["C"])


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    m: int,
    c: int,
    edges: bool = False,
    eps_decides: bool = False,
    to: torch.dtype = torch.int8,
) -> Call:
    x = (normal(generator, m, 3, c) * 5).to(dtype)
    if eps_decides:
        quiet(x)
    return Call((quantize.with_edges(x) if edges else x, 1 + 0.1 * normal(generator, c)), dict(eps=1e-6, dtype=to))


def example_add(
    generator: torch.Generator,
    dtype: torch.dtype,
    m: int,
    c: int,
    edges: bool = False,
    eps_decides: bool = False,
    to: torch.dtype = torch.int8,
) -> Call:
    x = 5 * normal(generator, m, 3, c + 8)[..., :c]  # rows further apart than they are long
    delta = normal(generator, m, 3, c, dtype=dtype)
    if edges:
        quantize.with_edges(x)
        delta[0, 0] = 0
    if eps_decides:
        quiet(x, 0.5)
        delta[0], delta[-1] = -0.5, 0
    return Call((x, delta, 1 + 0.1 * normal(generator, c)), dict(eps=1e-6, dtype=to))


CASES: list[dict[str, Any]] = [
    dict(m=1, c=64),
    dict(m=5, c=1000),
    dict(m=2, c=7),
    dict(m=3, c=1),
    dict(m=40, c=33),
    dict(m=3, c=131, edges=True),
    dict(m=1, c=2048),
    dict(m=5, c=1000, to=torch.float8_e4m3fn),
    dict(m=3, c=131, edges=True, to=torch.float8_e4m3fn),
    dict(m=1, c=2048, to=torch.float8_e4m3fn),
    dict(m=3, c=96, eps_decides=True),
    dict(m=3, c=96, eps_decides=True, to=torch.float8_e4m3fn),
]
RMS_NORM_QUANTIZED = register(
    Op(
        "rms_norm_quantized",
        Schema.parse("x: X[*, C], weight: f32[C] -> q: Q[*, C], scale: f32[*]"),
        reference,
        flops,
        CASES,
        example,
        quantized=("q",),
    )
)
ADD_RMS_NORM_QUANTIZED = register(
    Op(
        "add_rms_norm_quantized",
        Schema.parse("x: X[*, C], delta: T[*, C], weight: f32[C] -> total: X[*, C], q: Q[*, C], scale: f32[*]"),
        reference_add,
        flops,
        CASES,
        example_add,
        quantized=("q",),
    )
)


@RMS_NORM_QUANTIZED.implementation("native", quantize.refuses_native)
def run_native(
    x: torch.Tensor, weight: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, *, eps: float, dtype: torch.dtype
) -> None:
    normalize_native(x, None, weight, None, q, eps, scale)


@ADD_RMS_NORM_QUANTIZED.implementation("native", quantize.refuses_native)
def run_add_native(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
) -> None:
    normalize_native(x, delta, weight, total, q, eps, scale)


@RMS_NORM_QUANTIZED.implementation("triton", quantize.refuses_triton, tunables=WARPS)
def run_triton(
    x: torch.Tensor, weight: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, *, eps: float, dtype: torch.dtype
) -> None:
    from ...triton_kernels.rms_norm import launch

    launch(x, weight, q, eps, scale)


@ADD_RMS_NORM_QUANTIZED.implementation("triton", quantize.refuses_triton, tunables=WARPS)
def run_add_triton(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
) -> None:
    from ...triton_kernels.rms_norm import launch_add

    launch_add(x, delta, weight, total, q, eps, scale)


@RMS_NORM_QUANTIZED.implementation("torch")
def run_torch(
    x: torch.Tensor, weight: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, *, eps: float, dtype: torch.dtype
) -> None:
    # contiguous: summed in one order whatever the strides, since a sum's last bit can turn q's rounding
    rows.quantize(normalize(x.contiguous(), weight, eps), q, scale)


@ADD_RMS_NORM_QUANTIZED.implementation("torch")
def run_add_torch(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    *,
    eps: float,
    dtype: torch.dtype,
) -> None:
    torch.add(x, delta, out=total)
    rows.quantize(normalize(total, weight, eps), q, scale)
