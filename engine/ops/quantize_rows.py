"""Quantizes rows to 8 bits with one scale per row: see formats/rows.py. `dtype` is q's.

The result is the input of a `linear` that multiplies 8 bits by 8 bits, if the op before it cannot write 8 bits itself.
Attention cannot, because its output is made head by head.
"""

from __future__ import annotations

from typing import Any

import torch

from ..formats import rows
from . import quantize
from .base import Call, Given, define, normal


def reference(x: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.reference(x.float(), dtype)


def example(
    generator: torch.Generator, dtype: torch.dtype, m: int, c: int, edges: bool = False, to: torch.dtype = torch.int8
) -> Call:
    x = 5 * normal(generator, m, 3, c + 8).to(dtype)[..., :c]  # rows further apart than they are long
    return Call((quantize.with_edges(x) if edges else x,), dict(dtype=to))


OP = define(
    "quantize_rows",
    "x: X[*, C] -> q: Q[*, C], scale: f32[*]",
    reference,
    cases=[
        dict(m=1, c=64),
        dict(m=7, c=33),
        dict(m=3, c=1),
        dict(m=3, c=131, edges=True),
        dict(m=1, c=2048),
        dict(m=7, c=33, to=torch.float8_e4m3fn),
        dict(m=3, c=131, edges=True, to=torch.float8_e4m3fn),
        dict(m=1, c=2048, to=torch.float8_e4m3fn),
    ],
    example=example,
    quantized=("q",),
    flops="3*rows*C",
)


def members(call: Given) -> dict[str, Any]:
    channels = call.x.shape[-1]
    return dict(rows=call.x.numel() // channels, channels=channels)


OP.kernel("native", members, quantize.for_native())
OP.triton("quantize_rows", quantize.for_triton())


@OP.implementation("torch")
def run_torch(call: Given) -> None:
    rows.quantize(call.x.to(torch.float32, copy=True), call.q, call.scale)
