"""Pointwise activations: SiLU, exact GELU, and the gated SiLU of Llama's MLP, silu(gate) * up.

The last also into 8 bits, a scale for each row (formats/rows.py): inputs of a `linear` that multiplies 8 bits by 8.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F

from ..formats import rows
from . import quantize
from .base import Call, Given, define, normal
from .refusals import WARPS


def reference_silu(x: torch.Tensor) -> torch.Tensor:
    return x.float() * torch.sigmoid(x.float())


def reference_gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.float() * (1 + torch.erf(x.float() * 0.5**0.5))


def reference_silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return reference_silu(gate) * up


def reference_quantized(gate_up: torch.Tensor, dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor]:
    return rows.reference(reference_silu_mul(gate_up), dtype)


def example(generator: torch.Generator, dtype: torch.dtype, m: int, c: int) -> Call:
    return Call((4 * normal(generator, m, 2 * c).to(dtype),))


def example_quantized(
    generator: torch.Generator, dtype: torch.dtype, m: int, c: int, edges: bool = False, to: torch.dtype = torch.int8
) -> Call:
    x = 4 * normal(generator, m, 3, 2 * c).to(dtype)
    return Call((quantize.with_edges(x) if edges else x,), dict(dtype=to))


CASES: list[dict[str, Any]] = [dict(m=1, c=64), dict(m=7, c=33), dict(m=2, c=1500)]
SILU = define("silu", "x: T[*, C] -> y: T[*, C]", reference_silu, CASES, example, flops="5*rows*C")
GELU = define("gelu", "x: T[*, C] -> y: T[*, C]", reference_gelu, CASES, example, flops="5*rows*C")
SILU_MUL = define("silu_mul", "x: T[*, 2*C] -> y: T[*, C]", reference_silu_mul, CASES, example, flops="5*rows*C")


SILU_MUL_QUANTIZED = define(
    "silu_mul_quantized",
    "x: T[*, 2*C] -> y: Q[*, C], scale: f32[*]",
    reference_quantized,
    [
        *CASES,
        dict(m=3, c=1),
        dict(m=70, c=18),
        dict(m=3, c=131, edges=True),
        dict(m=1, c=5632),
        dict(m=2, c=1500, to=torch.float8_e4m3fn),
        dict(m=3, c=131, edges=True, to=torch.float8_e4m3fn),
        dict(m=1, c=5632, to=torch.float8_e4m3fn),
    ],
    example_quantized,
    quantized=("y",),
    flops="8*rows*C",
)


def members(call: Given) -> dict[str, Any]:
    channels = call.y.shape[-1]
    return dict(scale=call.get("scale"), rows=call.y.numel() // channels, channels=channels)


SILU_MUL.kernel("native", members)
SILU_MUL.triton("silu_mul")
SILU_MUL_QUANTIZED.kernel("native", members, quantize.for_native(inputs=2), kernel="silu_mul")
SILU_MUL_QUANTIZED.triton("silu_mul", quantize.for_triton(inputs=2), tunables=WARPS)


@SILU.implementation("torch")
def run_silu(call: Given) -> None:
    torch.ops.aten.silu.out(call.x, out=call.y)


@GELU.implementation("torch")
def run_gelu(call: Given) -> None:
    torch.ops.aten.gelu.out(call.x, out=call.y)


@SILU_MUL.implementation("torch")
def run_silu_mul(call: Given) -> None:
    gate, up = call.x.chunk(2, dim=-1)
    torch.mul(F.silu(gate), up, out=call.y)


@SILU_MUL_QUANTIZED.implementation("torch")
def run_silu_mul_quantized(call: Given) -> None:
    rows.quantize(silu_mul(call.x.float()), call.y, call.scale)


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of x (*, 2 C), in its dtype, by torch."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up
