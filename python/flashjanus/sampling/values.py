"""Checks of plain values that do not import torch. Each returns the value in its final type or raises InputError."""

from __future__ import annotations

import numbers
from collections.abc import Sequence
from typing import Any

from flashjanus.errors import InputError

MAX_STEPS = 1000
"""The time of the flow has 1000 positions, so more steps would only repeat positions."""
MAX_GUIDANCE = 1000.0
"""Far above any useful value, and far below what overflows in float32."""
MAX_SEED = 2**63 - 1
MAX_COUNT = 2**31 - 1
"""Largest number of tokens that a request may name."""


def integers(low: float, high: float) -> str:
    return f"an integer from {low} to {high}"


def reals(low: float, high: float) -> str:
    return f"a finite number from {low:g} to {high:g}"


def names(allowed: Sequence[str]) -> str:
    return f"one of {', '.join(map(repr, allowed))}"


def integer(name: str, value: Any, low: int, high: int) -> int:
    if isinstance(value, bool) or not isinstance(value, numbers.Integral) or not low <= int(value) <= high:
        raise InputError(f"{name}: expected {integers(low, high)}, got {value!r}")
    return int(value)


def number(name: str, value: Any, low: float, high: float) -> float:
    is_number = isinstance(value, numbers.Real) and not isinstance(value, bool)
    if not (is_number and low <= value <= high):  # false for NaN; integers too large for a float compare exactly
        raise InputError(f"{name}: expected {reals(low, high)}, got {value!r:.80}")
    return float(value)


def choice(name: str, value: Any, allowed: Sequence[str]) -> str:
    if value not in allowed:
        raise InputError(f"{name}: expected {names(allowed)}, got {value!r}")
    return str(value)
