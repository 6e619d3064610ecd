"""Checks of request options. Each returns the value in its final type or raises InputError."""

from __future__ import annotations

import secrets
from collections.abc import Sequence
from typing import Any

import torch

from flashjanus.errors import InputError
from flashjanus.sampling.values import MAX_GUIDANCE as MAX_GUIDANCE
from flashjanus.sampling.values import MAX_SEED as MAX_SEED
from flashjanus.sampling.values import MAX_STEPS as MAX_STEPS
from flashjanus.sampling.values import choice as choice
from flashjanus.sampling.values import integer as integer
from flashjanus.sampling.values import number as number

FLOATS = (torch.float32, torch.bfloat16, torch.float16)
INTEGERS = (torch.int64, torch.int32)
DTYPES = {
    "float32": torch.float32,
    "fp32": torch.float32,
    "bfloat16": torch.bfloat16,
    "bf16": torch.bfloat16,
    "float16": torch.float16,
    "fp16": torch.float16,
}


def per_row(name: str, value: Any, rows: int) -> list[Any]:
    """A scalar for every row, or one value per row."""
    if isinstance(value, (list, tuple)) or (isinstance(value, torch.Tensor) and value.dim() == 1):
        values = value.tolist() if isinstance(value, torch.Tensor) else list(value)
        if len(values) != rows:
            raise InputError(f"{name}: expected one value or {rows}, one per row, got {len(values)}")
        return values
    return [value] * rows


def dtype(value: Any, default: torch.dtype) -> torch.dtype:
    if value == "auto":
        return default
    for resolved in DTYPES.values():
        if value is resolved or (isinstance(value, str) and DTYPES.get(value) is resolved):
            return resolved
    raise InputError(f"dtype: expected 'auto', 'float32', 'bfloat16' or 'float16', got {value!r}")


def tensor(name: str, value: Any, shape: Sequence[int | None], dtypes: Sequence[torch.dtype]) -> torch.Tensor:
    """A tensor of the given dtypes and shape; None in `shape` stands for any size of at least 1."""
    expected = f"({', '.join('any' if s is None else str(s) for s in shape)})"
    if not isinstance(value, torch.Tensor):
        raise InputError(f"{name}: expected a torch.Tensor of shape {expected}, got {type(value).__name__}")
    if value.is_meta:
        raise InputError(f"{name}: expected a tensor with values, got one on the meta device; create it on the CPU")
    fits = value.dim() == len(shape) and all(s in (None, v) and v > 0 for s, v in zip(shape, value.shape, strict=False))
    if not fits:
        raise InputError(f"{name}: expected shape {expected}, got {tuple(value.shape)}")
    if value.dtype not in dtypes:
        raise InputError(f"{name}: expected {' or '.join(map(str, dtypes))}, got {value.dtype}; convert it with .to()")
    if value.is_floating_point() and not bool(value.isfinite().all()):
        raise InputError(f"{name}: expected finite values, got NaN or inf")
    return value.detach()


def first_seed(seed: Any, count: int) -> int:
    """Return the first of `count` consecutive seeds, a new one if `seed` is None. Raises InputError."""
    return secrets.randbits(32) if seed is None else integer("seed", seed, 0, MAX_SEED - count)
