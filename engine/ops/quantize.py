"""Shared by the ops whose outputs are 8-bit rows (see formats/rows.py): reasons to refuse, and cases."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch

from ... import triton_kernels
from ..device import native
from ..device.capabilities import no_e4m3
from ..specs import TensorSpec, static

MAX_CHANNELS = 8192
"""Limit: kMaxQuantizedChannels of csrc/kernel.h."""


def too_many_channels(channels: int) -> str | None:
    """Why a native kernel cannot quantize rows of that many channels, or None."""
    return f"quantizes rows of at most {MAX_CHANNELS} channels, not {channels}" if channels > MAX_CHANNELS else None


def _channels(specs: Sequence[TensorSpec | None], inputs: int) -> int:
    return static(specs[0].shape[-1]) // inputs if specs and specs[0] is not None else 0


def refuses_native(
    device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any], inputs: int = 1
) -> str | None:
    """Why a native kernel cannot quantize its result for the first argument, `inputs` values per channel, or None."""
    channels = _channels(specs, inputs)
    if attrs.get("dtype", torch.int8) is not torch.int8:
        return f"quantizes to int8, not to {attrs['dtype']}"
    return too_many_channels(channels) or native.refuses(device, *(spec.dtype for spec in specs if spec is not None))


def refuses_triton(
    device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any], inputs: int = 1
) -> str | None:
    """The same for a Triton kernel, which holds a row of channels in registers."""
    e4m3 = attrs.get("dtype") is torch.float8_e4m3fn
    return triton_kernels.refuses(device, _channels(specs, inputs)) or (no_e4m3(device) if e4m3 else None)


def with_edges(x: torch.Tensor) -> torch.Tensor:
    """Change x (rows, 3, C), rows >= 2, in place: the first rows get zeros, an outlier, NaN, infinity, tiny values."""
    rows = x.flatten(0, 1)
    rows[0] = 0
    rows[1, -1] = 1000
    rows[2, 0] = torch.nan
    rows[3, -1] = torch.inf
    rows[4] *= 1e-5
    return x
