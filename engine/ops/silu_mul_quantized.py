"""Gated SiLU, silu(gate) * up, into 8 bits with a scale for each row: see formats/rows.py and activations.py.

Inputs of a `linear` that multiplies 8 bits by 8 bits; `dtype` is q's.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ..formats import rows
from . import quantize
from .activations import reference_silu_mul, run_silu_mul_native
from .base import Bound, Call, Op, Schema, normal, register
from .dims import rows_of
from .refusals import WARPS


def reference(gate_up: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.reference(reference_silu_mul(gate_up), dtype)


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 8 * rows_of(bound) * int(bound["C"])


def example(
    generator: torch.Generator, dtype: torch.dtype, m: int, c: int, edges: bool = False, to: torch.dtype = torch.int8
) -> Call:
    x = 4 * normal(generator, m, 3, 2 * c).to(dtype)
    return Call((quantize.with_edges(x) if edges else x,), dict(dtype=to))


OP = register(
    Op(
        "silu_mul_quantized",
        Schema.parse("x: T[*, 2*C] -> q: Q[*, C], scale: f32[*]"),
        reference,
        flops,
        cases=[
            dict(m=1, c=64),
            dict(m=7, c=33),
            dict(m=2, c=1500),
            dict(m=3, c=1),
            dict(m=70, c=18),
            dict(m=3, c=131, edges=True),
            dict(m=1, c=5632),
            dict(m=2, c=1500, to=torch.float8_e4m3fn),
            dict(m=3, c=131, edges=True, to=torch.float8_e4m3fn),
            dict(m=1, c=5632, to=torch.float8_e4m3fn),
        ],
        example=example,
        quantized=("q",),
    )
)


@OP.implementation("native", partial(quantize.refuses_native, inputs=2))
def run_native(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, *, dtype: torch.dtype) -> None:
    run_silu_mul_native(x, q, scale)


@OP.implementation("triton", partial(quantize.refuses_triton, inputs=2), tunables=WARPS)
def run_triton(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, *, dtype: torch.dtype) -> None:
    from ...triton_kernels.silu_mul import launch_quantized

    launch_quantized(x, q, scale)


@OP.implementation("torch")
def run_torch(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, *, dtype: torch.dtype) -> None:
    gate, up = x.float().chunk(2, dim=-1)
    rows.quantize(F.silu(gate).mul_(up), q, scale)
