"""RMSNorm, alone and behind a residual add, into int8 with a scale for each row: see quantise.py and rms_norm.py.

Activations of a linear in int8. The weight is float32: nothing is rounded between the norm and q.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..ir import TensorSpec, static
from . import quantise
from .base import Bound, Call, Op, Refusal, Schema, normal, register
from .refusals import native_for_f32, triton_for_f32
from .rms_norm import normalise, normalise_native
from .rms_norm import reference as rms_reference
from .shapes import rows_of


def reference(x: torch.Tensor, weight: torch.Tensor, eps: float) -> tuple[torch.Tensor, torch.Tensor]:
    return quantise.reference(rms_reference(x, weight, eps, torch.float32))


def reference_add(
    x: torch.Tensor, delta: torch.Tensor, weight: torch.Tensor, eps: float
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    total = x.float() + delta.float()
    return total, *reference(total.to(x.dtype), weight, eps)


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 7 * rows_of(bound) * int(bound["C"])


def example(generator: torch.Generator, dtype: torch.dtype, m: int, c: int, edges: bool) -> Call:
    x = (normal(generator, m, 3, c) * 5).to(dtype)
    return Call((quantise.with_edges(x) if edges else x, 1 + 0.1 * normal(generator, c)), dict(eps=1e-6))


def example_add(generator: torch.Generator, dtype: torch.dtype, m: int, c: int, edges: bool) -> Call:
    x = 5 * normal(generator, m, 3, c + 8)[..., :c]  # rows further apart than they are long
    delta = normal(generator, m, 3, c, dtype=dtype)
    if edges:
        quantise.with_edges(x)
        delta[0, 0] = 0
    return Call((x, delta, 1 + 0.1 * normal(generator, c)), dict(eps=1e-6))


CASES = [
    dict(m=1, c=64, edges=False),
    dict(m=5, c=1000, edges=False),
    dict(m=2, c=7, edges=False),
    dict(m=3, c=1, edges=False),
    dict(m=40, c=33, edges=False),
    dict(m=3, c=131, edges=True),
    dict(m=1, c=2048, edges=False),
]
RMS_NORM_INT8 = register(
    Op(
        "rms_norm_int8",
        Schema.parse("x: X[*, C], weight: f32[C] -> q: i8[*, C], scale: f32[*]"),
        reference,
        flops,
        CASES,
        example,
        quantised=("q",),
    )
)
ADD_RMS_NORM_INT8 = register(
    Op(
        "add_rms_norm_int8",
        Schema.parse("x: X[*, C], delta: T[*, C], weight: f32[C] -> total: X[*, C], q: i8[*, C], scale: f32[*]"),
        reference_add,
        flops,
        CASES,
        example_add,
        quantised=("q",),
    )
)


def _native_for_f32(index: int) -> Refusal:
    """rms_norm's reasons to refuse, and rows too long for the stack."""
    of_norm = native_for_f32(index)

    def refuses(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
        channels = static(specs[0].shape[-1]) if specs and specs[0] is not None else 0
        return quantise.too_many_channels(channels) or of_norm(device, specs, attrs)

    return refuses


@RMS_NORM_INT8.implementation("native", _native_for_f32(1))
def run_native(x: torch.Tensor, weight: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, *, eps: float) -> None:
    normalise_native(x, None, weight, None, q, eps, scale)


@ADD_RMS_NORM_INT8.implementation("native", _native_for_f32(2))
def run_add_native(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    *,
    eps: float,
) -> None:
    normalise_native(x, delta, weight, total, q, eps, scale)


@RMS_NORM_INT8.implementation("triton", triton_for_f32(1, row=True))
def run_triton(x: torch.Tensor, weight: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, *, eps: float) -> None:
    from ...triton_kernels.rms_norm import launch

    launch(x, weight, q, eps, scale)


@ADD_RMS_NORM_INT8.implementation("triton", triton_for_f32(2, row=True))
def run_add_triton(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    *,
    eps: float,
) -> None:
    from ...triton_kernels.rms_norm import launch_add

    launch_add(x, delta, weight, total, q, eps, scale)


@RMS_NORM_INT8.implementation("torch")
def run_torch(x: torch.Tensor, weight: torch.Tensor, q: torch.Tensor, scale: torch.Tensor, *, eps: float) -> None:
    # contiguous: summed in one order whatever the strides, since a sum's last bit can turn q's rounding
    quantise.quantise(normalise(x.contiguous(), weight, eps), q, scale)


@ADD_RMS_NORM_INT8.implementation("torch")
def run_add_torch(
    x: torch.Tensor,
    delta: torch.Tensor,
    weight: torch.Tensor,
    total: torch.Tensor,
    q: torch.Tensor,
    scale: torch.Tensor,
    *,
    eps: float,
) -> None:
    torch.add(x, delta, out=total)
    quantise.quantise(normalise(total, weight, eps), q, scale)
