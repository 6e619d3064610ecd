"""Triton kernels. Importing this package imports no triton; each kernel's own module does.

A module holds @triton.jit bodies, `launch` functions on torch tensors, and `variants(capability)`: every form in which
the released model's sizes make them compile on GPUs of that compute capability (80, 90, 100).
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from typing import Any

import torch


def unavailable() -> str | None:
    """None where triton is installed, else the reason in words."""
    if find_spec("triton") is None:
        return "triton is not installed: `pip install flashjanus[triton]`"
    return None


def refuses(device: torch.device) -> str | None:
    """Why no Triton kernel can serve on `device`, or None."""
    return unavailable() if device.type == "cuda" else f"runs on a CUDA device, not on {device.type}"


@dataclass(frozen=True)
class Variant:
    """One compiled form of a kernel: what a launch on torch's tensors would specialise on.

    pointers: Triton's type by parameter name, e.g. "*bf16", taken to be aligned to 16 bytes; a parameter in `constants`
    is a constexpr (None for an absent pointer); those in `floats` are fp32; the others are i32, multiples of 16 where
    they are in `divisible`.
    """

    name: str
    kernel: Any
    pointers: Mapping[str, str]
    constants: Mapping[str, Any]
    options: Mapping[str, Any] = field(default_factory=dict)
    floats: frozenset[str] = frozenset()
    divisible: frozenset[str] = frozenset()
