"""Reasons to refuse that several ops' kernels share, and their tunable settings."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

from ... import triton_kernels
from ..device import native
from ..specs import TensorSpec, static
from .base import Refusal, Tunable

MAX_NORM_CHANNELS = 2048
"""Limit: kMaxNormChannels of csrc/kernel.h."""
WARPS = (Tunable("flashjanus.triton_kernels", "A_THREAD", (8, 32)),)
"""Settings of Triton kernels whose programs take one row each."""


def rounds_once(weight: TensorSpec | None) -> str | None:
    """Why a kernel that computes in float32 and rounds only what it stores cannot take this weight or table, or None.

    With bfloat16 weights, torch rounds every step to bfloat16.
    """
    if weight is None or weight.dtype is torch.float32:
        return None
    return "rounds once, for float32 weights, not for bfloat16 ones"


def floats(specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> list[torch.dtype]:
    """The floating dtypes of a call's arguments, and of its output if an attribute names it."""
    dtypes = [spec.dtype for spec in specs if spec is not None and spec.dtype.is_floating_point]
    return dtypes + ([attrs["dtype"]] if "dtype" in attrs else [])


def native_for_f32(index: int, of_device: Callable[..., str | None] = native.refuses) -> Refusal:
    """`refuses` for a CPU kernel whose argument `index` (a norm's weight, or a table) has to be float32.

    With native.refuses_cuda, it is for a CUDA kernel.
    """

    def refuses(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
        return (rounds_once(specs[index]) if specs else None) or of_device(device, *floats(specs, attrs))

    return refuses


def triton_for_f32(index: int, *, row: bool = False) -> Refusal:
    """`refuses` for a Triton kernel whose argument `index` has to be float32. row: it holds one row in registers."""

    def refuses(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
        channels = static(specs[0].shape[-1]) if row and specs and specs[0] is not None else 0
        return (rounds_once(specs[index]) if specs else None) or triton_kernels.refuses(device, channels)

    return refuses
