"""y = act(rms_norm(x) W^T * scale + bias) + residual with W in AMX tiles (formats/tiles.py), for any number of rows.

act(gate, up) = silu(gate) * up where act is "gated_silu", over the first and the last half of W's rows; "gelu" is the
exact one. An int8 W has a scale for each of its rows, and each row of rms_norm(x) is quantized as in formats/rows.py
(W8A8); with a bfloat16 W it is rounded to bfloat16. The plan makes it out of linears whose weights were tiled when they
were loaded (plan/fuse.py).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F

from ..device import native
from ..errors import SchemaError
from ..formats import rows, tiles
from ..formats.dense import DENSE
from ..formats.rows import INT8
from ..formats.tiles import TILES
from ..specs import Size, TensorSpec, static
from . import activations, quantize, rms_norm
from .base import Bound, Call, Op, Schema, normal, quiet, register
from .linear import flops, product_arguments
from .refusals import floats
from .shapes import outputs_of_row

ACTIVATIONS = ("none", "gated_silu", "gelu")
"""In the order of Activation in csrc/cpu/amx/tiled_linear.h."""


def derive(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    """M, the outputs of a row."""
    if attrs["act"] not in ACTIVATIONS:
        raise SchemaError(f"expected act out of {', '.join(ACTIVATIONS)}, got {attrs['act']!r}")
    n, k, dtype = static(bound["N"]), static(bound["K"]), bound["W"]
    columns = n // 2 if attrs["act"] == "gated_silu" else n
    reason = TILES[INT8 if dtype is torch.int8 else DENSE].refuses(columns, k, dtype)
    if reason is not None:
        raise SchemaError(reason)
    return outputs_of_row(bound, columns)


def reference(
    x: torch.Tensor,
    norm: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    act: str,
    eps: float,
    dtype: torch.dtype,
) -> torch.Tensor:
    rounded = torch.float32 if weight.dtype is torch.int8 else weight.dtype
    x = x.float() if norm is None else rms_norm.reference(x, norm, eps, rounded)
    weight = tiles.untile(weight)
    if scale is None:
        y = x @ weight.float().T
    else:
        q, steps = rows.reference(x)
        y = (q.round() @ weight.float().T) * steps[..., None] * scale.float()
    if bias is not None:
        y = y + bias.float()
    if act == "gated_silu":
        y = activations.reference_silu_mul(y)
    elif act == "gelu":
        y = activations.reference_gelu(y)
    return y if residual is None else y + residual.float()


def example(
    generator: torch.Generator,
    dtype: torch.dtype,
    m: int,
    k: int,
    n: int,
    norm: bool = False,
    bias: bool = False,
    residual: bool = False,
    act: str = "none",
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
        weight = torch.randint(-127, 128, (n, k), generator=generator, dtype=torch.int8)
        scale = (0.5 + torch.rand(n, generator=generator)) / (74 * k**0.5)
    added = normal(generator, n, dtype=dtype) if bias else None
    stream = normal(generator, m, 1, n // 2 if act == "gated_silu" else n) if residual else None
    attrs = dict(act=act, eps=1e-6, dtype=torch.float32 if residual else dtype)
    return Call((x, weights, tiles.tile(weight), scale, added, stream), attrs)


OP = register(
    Op(
        "tiled_linear",
        Schema.parse(
            "x: X[*, K], norm?: f32[K], weight: W[N, K], scale?: f32[N], bias?: B[N], residual?: R[*, M] -> y: Y[*, M]",
            derive,
        ),
        reference,
        flops,
        cases=[
            dict(m=1, k=64, n=96, norm=True),
            dict(m=16, k=32, n=16, bias=True),
            dict(m=3, k=96, n=160, norm=True, act="gated_silu"),
            dict(m=17, k=160, n=48, residual=True),
            dict(m=33, k=64, n=80, bias=True, act="gelu"),
            dict(m=70, k=1056, n=96, norm=True, act="gated_silu"),
            dict(m=200, k=4128, n=48, residual=True),
            dict(m=130, k=5632, n=64, bias=True),
            dict(m=1, k=128, n=80, norm=True, int8=True),
            dict(m=5, k=192, n=32, norm=True, act="gated_silu", int8=True),
            dict(m=40, k=640, n=48, residual=True, int8=True),
            dict(m=300, k=8192, n=32, bias=True, act="gelu", int8=True),
            dict(m=3, k=96, n=48, norm=True, eps_decides=True),
            dict(m=3, k=128, n=48, norm=True, int8=True, eps_decides=True),
        ],
        example=example,
        dtypes=(torch.bfloat16,),
    )
)


def _refuses_amx(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    if specs:
        x, norm, weight, scale, *_ = specs
        assert x is not None
        assert weight is not None
        if (scale is None) == (weight.dtype is torch.int8):
            return "takes a scale with int8 weights, and with those only"
        if scale is not None and static(x.shape[-1]) > quantize.MAX_CHANNELS:
            return quantize.too_many_channels(static(x.shape[-1]))
        if scale is None and norm is None and x.dtype is not weight.dtype:
            return f"multiplies {x.dtype} by {weight.dtype} only behind a norm"
    return native.refuses_amx(device, *floats(specs, attrs))


@OP.implementation("amx", _refuses_amx)
def run_amx(
    x: torch.Tensor,
    norm: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    y: torch.Tensor,
    *,
    act: str,
    eps: float,
    dtype: torch.dtype,
) -> None:
    native.run(
        "tiled_linear",
        bias=bias,
        bias_dtype=torch.float32 if bias is None else bias.dtype,
        act=ACTIVATIONS.index(act),
        **product_arguments(x, weight, y, norm=norm, scale=scale, residual=residual, eps=eps),
    )


@OP.implementation("torch")
def run_torch(
    x: torch.Tensor,
    norm: torch.Tensor | None,
    weight: torch.Tensor,
    scale: torch.Tensor | None,
    bias: torch.Tensor | None,
    residual: torch.Tensor | None,
    y: torch.Tensor,
    *,
    act: str,
    eps: float,
    dtype: torch.dtype,
) -> None:
    # the order of tiles is undone in every call: for comparison, not for speed
    weight = tiles.untile(weight)
    x = x.float() if norm is None else rms_norm.normalize(x, norm, eps)
    if scale is None:
        product = x.to(weight.dtype).float() @ weight.float().t()
    else:
        q, steps = rows.quantized(x)
        product = (q.float() @ weight.float().t()) * steps[..., None] * scale
    if bias is not None:
        product += bias.float()
    if act == "gated_silu":
        product = activations.silu_mul(product)
    elif act == "gelu":
        product = F.gelu(product)
    y.copy_(product if residual is None else product + residual)
