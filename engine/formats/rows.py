"""int8 and e4m3: rows in 8 bits. q = y / scale rounded to even, scale = max |y| / largest, for each row.

largest is 127 in int8 and 448 in float8_e4m3fn, whose values are so coarse that rounding is relative: within 1/16 of y,
or where y / scale is below 2^-6 within 2^-10 of it. y is in float32 and nothing rounds it before; scale is float32.
q = 0 in a row whose max |y| is below 1e-30 (a row of zeros has scale 0) or not finite: its scale is then infinite or
NaN, whichever the maximum is, so that q * scale is NaN throughout. q itself is finite and within largest, in e4m3 too.
Weights are kept so, and activations are quantized so by the ops that end in it.
"""

from __future__ import annotations

import torch

from ..specs import TensorSpec
from .base import Format, Packed, register

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""By dtype, what a row's largest value becomes."""


class Rows(Format):
    by_rows = True

    def __init__(self, name: str, dtype: torch.dtype) -> None:
        self.name, self.dtype = name, dtype

    def specs(self, n: int, k: int, dtype: torch.dtype) -> tuple[TensorSpec, TensorSpec | None]:
        return TensorSpec((n, k), self.dtype), TensorSpec((n,), torch.float32)

    def pack(self, weight: torch.Tensor, scale: torch.Tensor | None = None) -> Packed:
        return quantized(weight, self.dtype) if scale is None else (weight, scale)

    def matrix(self, values: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> Packed:
        return values.to(dtype), scale  # 8 bits are exact in bfloat16 too


INT8, E4M3 = Rows("int8", torch.int8), Rows("e4m3", torch.float8_e4m3fn)
register(INT8)
register(E4M3)


def reference(y: torch.Tensor, dtype: torch.dtype = torch.int8) -> tuple[torch.Tensor, torch.Tensor]:
    """q before it is rounded (see Op.quantized) and scale, in y's dtype."""
    largest = y.abs().amax(-1, keepdim=True)
    scale = largest / LARGEST[dtype]
    return torch.where(_usable(largest), y / scale, 0.0), scale.squeeze(-1)


def quantize(y: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    """q and scale of y (*, C) in float32, which is overwritten, by torch."""
    largest, most = y.abs().amax(-1), LARGEST[q.dtype]
    torch.div(largest, most, out=scale)
    steps = y.mul_((most / largest)[..., None])
    if q.dtype is torch.int8:
        steps.round_()
    else:
        steps.clamp_(-most, most)  # what lies beyond may become NaN, by a last bit of the product
    q.copy_(torch.where(_usable(largest)[..., None], steps, 0.0))


def quantized(y: torch.Tensor, dtype: torch.dtype = torch.int8) -> tuple[torch.Tensor, torch.Tensor]:
    """q (*, C) and scale (*) of y (*, C), by torch; y stays as it is."""
    q = torch.empty(y.shape, dtype=dtype, device=y.device)
    scale = torch.empty(y.shape[:-1], dtype=torch.float32, device=y.device)
    quantize(y.to(torch.float32, copy=True), q, scale)
    return q, scale


def _usable(largest: torch.Tensor) -> torch.Tensor:
    return (largest >= 1e-30) & (largest < torch.inf)
