"""y = act(rms_norm(x) W^T) + residual for a few rows, W in 4 bits (formats/nibbles.py): decoding waits for W.

act(gate, up) = silu(gate) * up over the first and the last half of W's rows where gated, else nothing. Each group of 32
values of a row of rms_norm(x) is quantized as in formats/rows.py (W4A8), its product with a group of W is exact. The
plan makes it out of linears for which the graph names 4-bit weights, where an implementation serves (plan/fuse.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ..device import native
from ..errors import SchemaError
from ..formats import nibbles, rows
from ..formats.nibbles import INT4
from ..specs import Size, TensorSpec, static
from . import activations, quantize, rms_norm
from .base import Bound, Call, Op, Schema, normal, quiet, register
from .linear import product_arguments, too_many_rows
from .refusals import floats
from .shapes import outputs_of_row, rows_of


def derive(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    """M, the outputs of a row."""
    panels = static(bound["P"])
    if attrs["gated"] and panels % 2:
        raise SchemaError(f"expected as many panels of gates as of ups, got {panels} panels")
    columns = nibbles.PANEL * (panels // 2 if attrs["gated"] else panels)
    return outputs_of_row(bound, columns)


def reference(
    x: torch.Tensor,
    norm: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor,
    residual: torch.Tensor | None,
    gated: bool,
    eps: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    x = x.float() if norm is None else rms_norm.reference(x, norm, eps, torch.float32)
    q, steps = rows.reference(_grouped(x))
    y = (q.round() * steps[..., None]).flatten(-2) @ INT4.unpack(weight, scale).to(x.dtype).T
    if gated:
        y = activations.reference_silu_mul(y)
    return y if residual is None else y + residual.float()


def _grouped(x: torch.Tensor) -> torch.Tensor:
    return x.reshape(*x.shape[:-1], -1, nibbles.GROUP)


def flops(bound: Bound, attrs: Mapping[str, Any]) -> int:
    return 2 * rows_of(bound) * nibbles.GROUP * int(bound["G"]) * nibbles.PANEL * int(bound["P"])


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    m: int,
    k: int,
    n: int,
    norm: bool = False,
    residual: bool = False,
    gated: bool = False,
    edges: bool = False,
    eps_decides: bool = False,
) -> Call:
    """The residual stream is float32, as it is in exact numerics: x behind a norm, and what is added to."""
    x = normal(generator, m, 1, k, dtype=torch.float32 if norm else dtype)
    if eps_decides:  # of the norm
        quiet(x)
    if edges:  # groups of zeros, of an outlier, of minute values, and one that is not finite
        x[0, 0, :32], x[0, 0, 33], x[-1, 0, :32] = 0, 1000, 1e-5
        x[1, 0, 5] = torch.inf
    weights = 1 + 0.3 * normal(generator, k) if norm else None
    weight, scale = INT4.pack(normal(generator, n, k) / k**0.5)
    stream = normal(generator, m, 1, n // 2 if gated else n) if residual else None
    return Call(
        (x, weights, weight, scale, stream), dict(gated=gated, eps=1e-6, dtype=torch.float32 if residual else dtype)
    )


OP = register(
    Op(
        "int4_linear",
        Schema.parse(
            "x: X[*, 32*G], norm?: f32[32*G], weight: u8[P, G, 4, 64], scale: bf16[P, G, 16], residual?: R[*, M]"
            " -> y: Y[*, M]",
            derive,
        ),
        reference,
        flops,
        cases=[
            dict(m=1, k=32, n=16),
            dict(m=1, k=128, n=80, norm=True),
            dict(m=1, k=5632, n=48, residual=True),
            dict(m=2, k=96, n=160, norm=True, gated=True),
            dict(m=3, k=160, n=48, residual=True),
            dict(m=4, k=2048, n=32, norm=True),
            dict(m=4, k=192, n=32, norm=True, gated=True),
            dict(m=3, k=64, n=96, gated=True, residual=True),
            dict(m=2, k=8192, n=32),
            dict(m=9, k=64, n=48, residual=True),
            dict(m=3, k=96, n=32, edges=True),
            dict(m=3, k=96, n=32, norm=True, eps_decides=True),
        ],
        example=example,
        dtypes=(torch.bfloat16,),
    )
)


def _refuses_amx(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    if specs:
        x = specs[0]
        assert x is not None
        reason = too_many_rows(x) or quantize.too_many_channels(static(x.shape[-1]))
        if reason is not None:
            return reason
    return native.refuses_amx(device, *floats(specs, attrs))


@OP.implementation("amx", _refuses_amx)
def run_amx(
    x: torch.Tensor,
    norm: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor,
    residual: torch.Tensor | None,
    y: torch.Tensor,
    *,
    gated: bool,
    eps: float,
    dtype: torch.dtype,
) -> None:
    shared = product_arguments(x, weight, y, norm=norm, scale=scale, residual=residual, eps=eps)
    native.run("int4_linear", gated=gated, **shared)


@OP.implementation("torch")
def run_torch(
    x: torch.Tensor,
    norm: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor,
    residual: torch.Tensor | None,
    y: torch.Tensor,
    *,
    gated: bool,
    eps: float,
    dtype: torch.dtype,
) -> None:
    # W is widened in every call: for comparison, not for speed
    x = x.float() if norm is None else rms_norm.normalize(x, norm, eps)
    q, steps = rows.quantized(_grouped(x))
    product = (q * steps[..., None]).flatten(-2) @ INT4.unpack(weight, scale).t()
    if gated:
        product = activations.silu_mul(product)
    y.copy_(product if residual is None else product + residual)
