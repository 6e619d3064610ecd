"""Reasons to refuse that several ops' kernels share, and their tunable settings."""

from __future__ import annotations

import torch

from ...triton_kernels import too_wide
from ..specs import TensorSpec, static
from .base import Given, Reason, Tunable

MAX_NORM_CHANNELS = 2048
"""Limit: kMaxNormChannels of csrc/kernel.h."""
WARPS = (Tunable("flashjanus.triton_kernels", "A_THREAD", (8, 32)),)
"""Settings of Triton kernels whose programs take one row each."""


def channels_of(x: TensorSpec) -> int:
    """The size of the last axis."""
    return static(x.shape[-1])


def rounds_once(weight: TensorSpec | None) -> str | None:
    """Why a kernel that computes in float32 and rounds only what it stores cannot take this weight or table, or None.

    With bfloat16 weights, torch rounds every step to bfloat16.
    """
    if weight is None or weight.dtype is torch.float32:
        return None
    return "rounds once, for float32 weights, not for bfloat16 ones"


def for_f32(name: str, row: str | None = None) -> Reason:
    """For kernels whose argument `name` (a norm's weight, or a table) has to be float32, and which hold a row of the
    argument `row` in registers."""

    def cannot(call: Given) -> str | None:
        return rounds_once(call.get(name)) or (None if row is None else too_wide(channels_of(call.get(row))))

    return cannot
