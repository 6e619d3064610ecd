"""y = act(rms_norm(x) W^T * scale) + residual: a linear of few tokens with what stands before it and after it.

act(gate, up) = silu(gate) * up where `gated`, over the first and the last half of W's rows. The plan puts it in the
place of the parts (plan/fuse.py) where a kernel of its own serves: decoding launches half as many kernels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..device import native
from ..errors import SchemaError
from ..specs import Size, TensorSpec, static
from . import activations, rms_norm
from .base import Bound, Call, Op, Schema, normal, quiet, register
from .linear import flops, gemv_arguments, many_tokens, too_many_rows
from .refusals import MAX_NORM_CHANNELS, floats
from .shapes import outputs_of_row


def derive(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    """M, the outputs of a row."""
    rows = bound["N"]
    if attrs["gated"]:
        half = rows.divided(2) if not isinstance(rows, int) else None if rows % 2 else rows // 2
        if half is None:
            raise SchemaError(f"gated, expected an even number of rows of weight, got {rows}")
        rows = half
    return outputs_of_row(bound, rows)


def reference(
    x: torch.Tensor,
    norm: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    residual: torch.Tensor | None,
    eps: float,
    gated: bool,
    dtype: torch.dtype,
) -> torch.Tensor:
    x = x.float() if norm is None else rms_norm.reference(x, norm, eps, dtype)
    y = x @ weight.float().T
    if scale is not None:
        y = y * scale.float()
    if gated:
        y = activations.reference_silu_mul(y)
    return y if residual is None else y + residual.float()


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    m: int,
    k: int,
    n: int,
    norm: bool = False,
    residual: bool = False,
    gated: bool = False,
    int8: bool = False,
    eps_decides: bool = False,
) -> Call:
    """The residual stream is float32, as it is in exact numerics: x behind a norm, and what is added to."""
    x = normal(generator, m, 1, k, dtype=torch.float32 if norm else dtype)
    if eps_decides:  # of the norm
        quiet(x)
    weights = 1 + 0.3 * normal(generator, k) if norm else None
    weight, scale = (normal(generator, n, k) / k**0.5).to(dtype), None
    if int8:
        weight = torch.randint(-128, 128, (n, k), generator=generator, dtype=torch.int8)
        scale = (0.5 + torch.rand(n, generator=generator)) / (74 * k**0.5)
    added = normal(generator, m, 1, n // 2 if gated else n) if residual else None
    attrs = dict(eps=1e-6, gated=gated, dtype=torch.float32 if residual else dtype)
    return Call((x, weights, weight, scale, added), attrs)


OP = register(
    Op(
        "fused_linear",
        Schema.parse(
            "x: X[*, K], norm?: f32[K], weight: W[N, K], scale?: f32[N], residual?: f32[*, M] -> y: Y[*, M]", derive
        ),
        reference,
        flops,
        cases=[
            dict(m=1, k=64, n=96, norm=True),
            dict(m=1, k=33, n=7, residual=True),
            dict(m=2, k=72, n=38, norm=True, gated=True),
            dict(m=3, k=200, n=65, norm=True),
            dict(m=4, k=129, n=66, norm=True, gated=True),
            dict(m=1, k=2600, n=5, residual=True),
            dict(m=1, k=2048, n=6, norm=True, gated=True),
            dict(m=4, k=1031, n=3, norm=True),
            dict(m=2, k=40, n=24, gated=True, residual=True),
            dict(m=6, k=40, n=24, norm=True),
            dict(m=1, k=2080, n=4, norm=True),
            dict(m=1, k=96, n=10, norm=True, int8=True),
            dict(m=2, k=600, n=34, norm=True, gated=True, int8=True),
            dict(m=4, k=77, n=9, residual=True, int8=True),
            dict(m=3, k=64, n=38, norm=True, eps_decides=True),
            dict(m=3, k=96, n=10, norm=True, int8=True, eps_decides=True),
        ],
        example=example,
    )
)


def refuses(specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    """Why a matrix-vector kernel cannot take this call, however few its rows are, or None."""
    if not specs:
        return None
    x, norm, weight, scale, _ = specs
    assert x is not None
    assert weight is not None
    if norm is not None and static(x.shape[-1]) > MAX_NORM_CHANNELS:
        return f"normalizes at most {MAX_NORM_CHANNELS} channels"
    if (scale is None) != weight.dtype.is_floating_point:
        return "takes a scale with int8 weights, and with those only"
    if scale is None and x.dtype is not weight.dtype and (norm is None or x.dtype is not torch.float32):
        return f"multiplies {x.dtype} by {weight.dtype} only behind a norm of float32"
    return None


def _refuses_native(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    many = many_tokens(specs[0]) if specs else None
    return refuses(specs, attrs) or many or native.refuses(device, *floats(specs, attrs))


def _refuses_cuda(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    many = too_many_rows(specs[0]) if specs else None
    return refuses(specs, attrs) or many or native.refuses_cuda(device, *floats(specs, attrs))


def _yields_torch(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return "no faster than the parts, which have kernels of their own" if specs else None


@OP.implementation("native", _refuses_native)
def run_native(*tensors: Any, **attrs: Any) -> None:
    native.run("gemv", **_arguments(*tensors, **attrs))


@OP.implementation("cuda", _refuses_cuda)
def run_cuda(*tensors: Any, **attrs: Any) -> None:
    native.run_cuda("gemv", tensors[0].device, **_arguments(*tensors, **attrs))


def _arguments(
    x: torch.Tensor,
    norm: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    residual: torch.Tensor | None,
    y: torch.Tensor,
    *,
    eps: float,
    gated: bool,
    dtype: torch.dtype,
) -> dict[str, Any]:
    return gemv_arguments(x, weight, y, norm=norm, scale=scale, residual=residual, eps=eps, gated=gated)


@OP.implementation("torch", yields=_yields_torch)
def run_torch(
    x: torch.Tensor,
    norm: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    residual: torch.Tensor | None,
    y: torch.Tensor,
    *,
    eps: float,
    gated: bool,
    dtype: torch.dtype,
) -> None:
    if norm is not None:
        x = rms_norm.normalize(x, norm, eps).to(weight.dtype if scale is None else x.dtype)
    product = x.float() @ weight.float().t()
    if scale is not None:
        product *= scale
    if gated:
        product = activations.silu_mul(product)
    y.copy_(product if residual is None else product + residual)
