"""Pointwise activations: SiLU, exact GELU, and the gated SiLU of Llama's MLP, silu(gate) * up."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ... import triton_kernels
from ..device import native
from ..specs import TensorSpec
from .base import Bound, Call, Op, Schema, normal, register
from .dims import rows_of


def reference_silu(x: torch.Tensor) -> torch.Tensor:
    return x.float() * torch.sigmoid(x.float())


def reference_gelu(x: torch.Tensor) -> torch.Tensor:
    return 0.5 * x.float() * (1 + torch.erf(x.float() * 0.5**0.5))


def reference_silu_mul(gate_up: torch.Tensor) -> torch.Tensor:
    gate, up = gate_up.float().chunk(2, dim=-1)
    return reference_silu(gate) * up


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 5 * rows_of(bound) * int(bound["C"])


def example(generator: torch.Generator, dtype: torch.dtype, m: int, c: int) -> Call:
    return Call((4 * normal(generator, m, 2 * c).to(dtype),))


CASES = [dict(m=1, c=64), dict(m=7, c=33), dict(m=2, c=1500)]
SILU = register(Op("silu", Schema.parse("x: T[*, C] -> y: T[*, C]"), reference_silu, flops, CASES, example))
GELU = register(Op("gelu", Schema.parse("x: T[*, C] -> y: T[*, C]"), reference_gelu, flops, CASES, example))
SILU_MUL = register(
    Op("silu_mul", Schema.parse("x: T[*, 2*C] -> y: T[*, C]"), reference_silu_mul, flops, CASES, example)
)


@SILU.implementation("torch")
def run_silu(x: torch.Tensor, y: torch.Tensor) -> None:
    torch.ops.aten.silu.out(x, out=y)


@GELU.implementation("torch")
def run_gelu(x: torch.Tensor, y: torch.Tensor) -> None:
    torch.ops.aten.gelu.out(x, out=y)


def _refuses_native(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return native.refuses(device, *(spec.dtype for spec in specs if spec is not None))


@SILU_MUL.implementation("native", _refuses_native)
def run_silu_mul_native(x: torch.Tensor, y: torch.Tensor, scale: torch.Tensor | None = None) -> None:
    x, channels = x.contiguous(), y.shape[-1]
    native.run("silu_mul", x=x, y=y, scale=scale, dtype=x.dtype, rows=y.numel() // channels, channels=channels)


def _refuses_triton(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return triton_kernels.refuses(device)


@SILU_MUL.implementation("triton", _refuses_triton)
def run_silu_mul_triton(x: torch.Tensor, y: torch.Tensor) -> None:
    from ...triton_kernels.silu_mul import launch

    launch(x, y)


@SILU_MUL.implementation("torch")
def run_silu_mul(x: torch.Tensor, y: torch.Tensor) -> None:
    gate, up = x.chunk(2, dim=-1)
    torch.mul(F.silu(gate), up, out=y)


def silu_mul(x: torch.Tensor) -> torch.Tensor:
    """silu(gate) * up of x (*, 2 C), in its dtype, by torch."""
    gate, up = x.chunk(2, dim=-1)
    return F.silu(gate) * up
