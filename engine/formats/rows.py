"""int8 and e4m3: rows in 8 bits. q = y / scale rounded to even, scale = max |y| / largest, one scale per row.

largest is 127 in int8 and 448 in float8_e4m3fn. Rounding to float8_e4m3fn is coarse: its error is at most 1/16 of y or,
where y / scale is below 2^-6, at most 2^-10 in y / scale. y is float32 and nothing rounds it first; scale is float32.
q = 0 in a row whose max |y| is below 1e-30 (a row of zeros has scale 0) or is not finite. In the latter case scale is
infinite or NaN, as the maximum is, and q * scale is NaN throughout. q itself is always finite and within largest.
Weights are stored in these formats, and ops with 8-bit outputs quantize activations in the same way.
"""

from __future__ import annotations

import torch

from ..specs import TensorSpec
from .base import Format, Packed, register

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""The value that a row's largest magnitude maps to, by dtype."""


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
    """q before rounding (see Op.quantized), and scale, both in y's dtype."""
    largest = y.abs().amax(-1, keepdim=True)
    scale = largest / LARGEST[dtype]
    return torch.where(_usable(largest), y / scale, 0.0), scale.squeeze(-1)


def quantize(y: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    """Write q and scale of y (*, C), float32, using torch. y is overwritten."""
    largest, most = y.abs().amax(-1), LARGEST[q.dtype]
    torch.div(largest, most, out=scale)
    steps = y.mul_((most / largest)[..., None])
    if q.dtype is torch.int8:
        steps.round_()
    else:
        steps.clamp_(-most, most)  # the product may exceed `most` in its last bit, and then become NaN
    q.copy_(torch.where(_usable(largest)[..., None], steps, 0.0))


def quantized(y: torch.Tensor, dtype: torch.dtype = torch.int8) -> tuple[torch.Tensor, torch.Tensor]:
    """q (*, C) and scale (*) of y (*, C), using torch. y is left unchanged."""
    q = torch.empty(y.shape, dtype=dtype, device=y.device)
    scale = torch.empty(y.shape[:-1], dtype=torch.float32, device=y.device)
    quantize(y.to(torch.float32, copy=True), q, scale)
    return q, scale


def _usable(largest: torch.Tensor) -> torch.Tensor:
    return (largest >= 1e-30) & (largest < torch.inf)
