"""Small helpers on bound sizes, shared by the ops' cost functions."""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from ..errors import SchemaError
from ..specs import Size
from .base import Bound


def rows_of(bound: Bound) -> int:
    """Product of the leading sizes `*`."""
    return math.prod(int(s) for s in bound["*"])


def elements(bound: Bound, *names: str) -> int:
    """Product of the named sizes."""
    return math.prod(int(bound[n]) for n in names)


def outputs_of_row(bound: Bound, columns: Size) -> Mapping[str, Size]:
    """M, the outputs of a row, of a linear that may add a residual [*, M]."""
    if bound.get("M", columns) != columns:
        raise SchemaError(f"expected a residual of {columns} columns, got {bound['M']}")
    return {"M": columns}


def check_branches(branches: Size, rows: Size) -> None:
    """R rows may branch: the second branches of the first ones follow them, R <= B <= 2 R."""
    if isinstance(branches, int) and isinstance(rows, int) and not rows <= branches <= 2 * rows:
        raise SchemaError(f"expected R <= B <= 2 R branches of R rows, got B = {branches}, R = {rows}")


def branches_of_rows(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    """`derive` of ops whose B rows are branches of R rows."""
    check_branches(bound["B"], bound["R"])
    return {}


def readable(x: torch.Tensor) -> bool:
    """True if the host can look at values of x without waiting for a device, which a CUDA graph would not take."""
    return x.device.type == "cpu"
