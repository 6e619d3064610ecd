"""Small helpers on bound sizes, shared by the ops' cost functions."""

from __future__ import annotations

import math

from .base import Bound


def rows_of(bound: Bound) -> int:
    """Product of the leading sizes `*`."""
    return math.prod(int(s) for s in bound["*"])


def elements(bound: Bound, *names: str) -> int:
    """Product of the named sizes."""
    return math.prod(int(bound[n]) for n in names)
