"""Rows in int8, for the ops that end in it: q = y / scale rounded to even, scale = max |y| / 127, for each row of y.

y is in float32 and nothing rounds it before; q -127..127 and scale float32. q = 0 in a row whose max |y| is below 1e-30
(a row of zeros has scale 0) or not finite: its scale is then infinite or NaN, whichever the maximum is, so that q *
scale is NaN throughout.
"""

from __future__ import annotations

import torch

MAX_CHANNELS = 8192
"""kMaxQuantisedChannels of csrc/params.h."""


def reference(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q before it is rounded (see Op.quantised) and scale, in y's dtype."""
    largest = y.abs().amax(-1, keepdim=True)
    scale = largest / 127
    return torch.where(_usable(largest), y / scale, 0.0), scale.squeeze(-1)


def quantise(y: torch.Tensor, q: torch.Tensor, scale: torch.Tensor) -> None:
    """q and scale of y (*, C) in float32, which is overwritten, by torch."""
    largest = y.abs().amax(-1)
    torch.div(largest, 127, out=scale)
    steps = y.mul_((127 / largest)[..., None]).round_()
    q.copy_(torch.where(_usable(largest)[..., None], steps, 0.0))


def quantised(y: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """q (*, C) int8 and scale (*) of y (*, C), by torch; y stays as it is."""
    q, scale = torch.empty(y.shape, dtype=torch.int8), torch.empty(y.shape[:-1])
    quantise(y.to(torch.float32, copy=True), q, scale)
    return q, scale


def _usable(largest: torch.Tensor) -> torch.Tensor:
    return (largest >= 1e-30) & (largest < torch.inf)


def too_many_channels(channels: int) -> str | None:
    """Why a native kernel cannot quantise rows of so many channels, or None."""
    return f"quantises rows of at most {MAX_CHANNELS} channels, not {channels}" if channels > MAX_CHANNELS else None


def with_edges(x: torch.Tensor) -> torch.Tensor:
    """x (rows, 3, C), rows >= 2, in place: the first rows get zeros, an outlier, a NaN, an infinity, minute values."""
    rows = x.flatten(0, 1)
    rows[0] = 0
    rows[1, -1] = 1000
    rows[2, 0] = torch.nan
    rows[3, -1] = torch.inf
    rows[4] *= 1e-5
    return x
