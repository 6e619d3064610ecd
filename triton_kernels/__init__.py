"""Triton kernels. Importing this package does not import triton; each kernel's own module does.

A module holds @triton.jit bodies, `launch` functions on torch tensors, and `variants(capability)`: every form in which
the released model's sizes compile on GPUs of that compute capability (80, 90, 100).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch

MAX_ROW = 8192
"""Most channels of a row that a program holds in registers, 16 per thread."""
A_THREAD = 16
"""Elements of a tile per thread, as long as a program has 1 to 16 warps."""


def unavailable() -> str | None:
    """None if triton is installed, else the reason in words."""
    if find_spec("triton") is None:
        return "triton is not installed: `pip install flashjanus[triton]`"
    return None


def refuses(device: torch.device, *dtypes: torch.dtype) -> str | None:
    """Why no Triton kernel can serve on `device`, or None. Floating dtypes are converted, whatever they are."""
    return unavailable() if device.type == "cuda" else f"runs on a CUDA device, not on {device.type}"


def too_wide(channels: int) -> str | None:
    """Why a kernel that holds a row in registers cannot serve rows of so many channels, or None."""
    return f"holds a row in registers: at most {MAX_ROW} channels, not {channels}" if channels > MAX_ROW else None


def rows_of(x: torch.Tensor) -> torch.Tensor:
    """x (*, C) as (rows, C) with contiguous channels: a view if the strides allow it, else a copy."""
    x = x.reshape(-1, x.shape[-1])
    return x if x.stride(1) == 1 else x.contiguous()


def options(tile: int) -> dict[str, int | bool]:
    """Launch options of a program over a tile of `tile` elements, with fused multiply-add."""
    return {"num_warps": min(max(tile // (32 * A_THREAD), 1), 16), "enable_fp_fusion": True}


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel, which a launch on torch's tensors would specialize to.

    pointers: Triton's type by parameter name, e.g. "*bf16", assumed to be aligned to 16 bytes. A parameter in
    `constants` is a constexpr (None for an absent pointer), those in `floats` are fp32, and the others are i32,
    multiples of 16 if they are in `divisible`.
    """

    name: str
    kernel: Any
    pointers: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    floats: frozenset[str] = frozenset()
    divisible: frozenset[str] = frozenset()
