"""Shared by the ops whose outputs are 8-bit rows (see formats/rows.py): reasons to refuse, and cases."""

from __future__ import annotations

import torch

from ...triton_kernels import too_wide
from ..device.capabilities import no_e4m3
from .base import Given, Reason
from .refusals import channels_of

MAX_CHANNELS = 8192
"""Limit: kMaxQuantizedChannels of csrc/kernel.h."""


def too_many_channels(channels: int) -> str | None:
    """Why a native kernel cannot quantize rows of that many channels, or None."""
    return f"quantizes rows of at most {MAX_CHANNELS} channels, not {channels}" if channels > MAX_CHANNELS else None


def for_native(inputs: int = 1) -> Reason:
    """For native kernels that quantize their result for the argument x, which has `inputs` values per channel."""

    def cannot(call: Given) -> str | None:
        if call.dtype is not torch.int8:
            return f"quantizes to int8, not to {call.dtype}"
        return too_many_channels(channels_of(call.x) // inputs)

    return cannot


def for_triton(inputs: int = 1) -> Reason:
    """The same for a Triton kernel, which holds a row of channels in registers."""

    def cannot(call: Given) -> str | None:
        e4m3 = no_e4m3(call.device) if call.dtype is torch.float8_e4m3fn else None
        return too_wide(channels_of(call.x) // inputs) or e4m3

    return cannot


def with_edges(x: torch.Tensor) -> torch.Tensor:
    """Change x (rows, 3, C), rows >= 2, in place: the first rows get zeros, an outlier, NaN, infinity, tiny values."""
    rows = x.flatten(0, 1)
    rows[0] = 0
    rows[1, -1] = 1000
    rows[2, 0] = torch.nan
    rows[3, -1] = torch.inf
    rows[4] *= 1e-5
    return x
