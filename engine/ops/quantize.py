"""Rows in 8 bits, for the ops that end in them: q = y / scale rounded to even, scale = max |y| / largest, for each row.

largest is 127 in int8 and 448 in float8_e4m3fn, whose values are so coarse that rounding is relative: within 1/16 of y,
or where y / scale is below 2^-6 within 2^-10 of it. y is in float32 and nothing rounds it before; scale is float32.
q = 0 in a row whose max |y| is below 1e-30 (a row of zeros has scale 0) or not finite: its scale is then infinite or
NaN, whichever the maximum is, so that q * scale is NaN throughout. q itself is finite and within largest, in e4m3 too.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ... import triton_kernels
from ..device import native
from ..device.capabilities import no_e4m3
from ..specs import TensorSpec, static

LARGEST = {torch.int8: 127.0, torch.float8_e4m3fn: 448.0}
"""By dtype, what a row's largest value becomes."""
MAX_CHANNELS = 8192
"""kMaxQuantizedChannels of csrc/kernel.h."""


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


def too_many_channels(channels: int) -> str | None:
    """Why a native kernel cannot quantize rows of so many channels, or None."""
    return f"quantizes rows of at most {MAX_CHANNELS} channels, not {channels}" if channels > MAX_CHANNELS else None


def _channels(specs: Sequence[TensorSpec | None], inputs: int) -> int:
    return static(specs[0].shape[-1]) // inputs if specs and specs[0] is not None else 0


def refuses_native(
    device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any], inputs: int = 1
) -> str | None:
    """Why a native kernel cannot quantize what it makes of the first argument, `inputs` values a channel, or None."""
    channels = _channels(specs, inputs)
    if attrs.get("dtype", torch.int8) is not torch.int8:
        return f"quantizes to int8, not to {attrs['dtype']}"
    return too_many_channels(channels) or native.refuses(device, *(spec.dtype for spec in specs if spec is not None))


def refuses_triton(
    device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any], inputs: int = 1
) -> str | None:
    """The same of a Triton kernel, which holds a row of channels in registers."""
    e4m3 = attrs.get("dtype") is torch.float8_e4m3fn
    return triton_kernels.refuses(device, _channels(specs, inputs)) or (no_e4m3(device) if e4m3 else None)


def with_edges(x: torch.Tensor) -> torch.Tensor:
    """x (rows, 3, C), rows >= 2, in place: the first rows get zeros, an outlier, a NaN, an infinity, minute values."""
    rows = x.flatten(0, 1)
    rows[0] = 0
    rows[1, -1] = 1000
    rows[2, 0] = torch.nan
    rows[3, -1] = torch.inf
    rows[4] *= 1e-5
    return x
