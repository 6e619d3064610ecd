"""Pointwise activations: SiLU, exact GELU, and the gated SiLU of Llama's MLP, silu(gate) * up.

The last also into 8 bits, a scale for each row (formats/rows.py): inputs of a `linear` that multiplies 8 bits by 8.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import torch
import torch.nn.functional as F

from ... import triton_kernels
from ..device import native
from ..formats import rows
from ..specs import TensorSpec
from . import quantize
from .base import Bound, Call, Op, Schema, normal, register
from .dims import rows_of
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


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 5 * rows_of(bound) * int(bound["C"])


def example(generator: torch.Generator, dtype: torch.dtype, m: int, c: int) -> Call:
    return Call((4 * normal(generator, m, 2 * c).to(dtype),))


def example_quantized(
    generator: torch.Generator, dtype: torch.dtype, m: int, c: int, edges: bool = False, to: torch.dtype = torch.int8
) -> Call:
    x = 4 * normal(generator, m, 3, 2 * c).to(dtype)
    return Call((quantize.with_edges(x) if edges else x,), dict(dtype=to))


CASES: list[dict[str, Any]] = [dict(m=1, c=64), dict(m=7, c=33), dict(m=2, c=1500)]
SILU = register(Op("silu", Schema.parse("x: T[*, C] -> y: T[*, C]"), reference_silu, flops, CASES, example))
GELU = register(Op("gelu", Schema.parse("x: T[*, C] -> y: T[*, C]"), reference_gelu, flops, CASES, example))
SILU_MUL = register(
    Op("silu_mul", Schema.parse("x: T[*, 2*C] -> y: T[*, C]"), reference_silu_mul, flops, CASES, example)
)


SILU_MUL_QUANTIZED = register(
    Op(
        "silu_mul_quantized",
        Schema.parse("x: T[*, 2*C] -> q: Q[*, C], scale: f32[*]"),
        reference_quantized,
        lambda bound, attrs: 8 * rows_of(bound) * int(bound["C"]),
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
        quantized=("q",),
    )
)


@SILU.implementation("torch")
def run_silu(x: torch.Tensor, y: torch.Tensor) -> None:
    torch.ops.aten.silu.out(x, out=y)


@GELU.implementation("torch")
def run_gelu(x: torch.Tensor, y: torch.Tensor) -> None:
    torch.ops.aten.gelu.out(x, out=y)


def _refuses_native(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return native.refuses(device, *(spec.dtype for spec in specs if spec is not None))


@SILU_MUL_QUANTIZED.implementation("native", partial(quantize.refuses_native, inputs=2))
@SILU_MUL.implementation("native", _refuses_native)
def run_silu_mul_native(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor | None = None, **attrs: Any) -> None:
    x, channels = x.contiguous(), y.shape[-1]
    native.run("silu_mul", x=x, y=y, scale=scale, dtype=x.dtype, rows=y.numel() // channels, channels=channels)


def _refuses_triton(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return triton_kernels.refuses(device)


@SILU_MUL_QUANTIZED.implementation("triton", partial(quantize.refuses_triton, inputs=2), tunables=WARPS)
@SILU_MUL.implementation("triton", _refuses_triton)
def run_silu_mul_triton(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor | None = None, **attrs: Any) -> None:
    from ...triton_kernels.silu_mul import launch

    launch(x, y, scale)


@SILU_MUL.implementation("torch")
def run_silu_mul(x: torch.Tensor, y: torch.Tensor) -> None:
    gate, up = x.chunk(2, dim=-1)
    torch.mul(F.silu(gate), up, out=y)


@SILU_MUL_QUANTIZED.implementation("torch")
def run_silu_mul_quantized(x: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, *, dtype: torch.dtype) -> None:
    rows.quantize(silu_mul(x.float()), q, scale)


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of x (*, 2 C), in its dtype, by torch."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up
