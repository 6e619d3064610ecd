"""Checks on sizes that several ops share."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch

from ..errors import SchemaError
from ..specs import Size
from .schema import Bound


def outputs_of_row(bound: Bound, columns: Size) -> Mapping[str, Size]:
    """M, the outputs per row of a linear that may add a residual [*, M]."""
    if bound.get("M", columns) != columns:
        raise SchemaError(f"expected a residual of {columns} columns, got {bound['M']}")
    return {"M": columns}


def check_branches(branches: Size, rows: Size) -> None:
    """Check that R <= B <= 2 R: the R rows are followed by second branches of the first B - R of them."""
    if isinstance(branches, int) and isinstance(rows, int) and not rows <= branches <= 2 * rows:
        raise SchemaError(f"expected R <= B <= 2 R branches of R rows, got B = {branches}, R = {rows}")


def branches_of_rows(bound: Bound, attrs: Mapping[str, Any]) -> Mapping[str, Size]:
    """`derive` for ops whose B rows are branches of R rows."""
    check_branches(bound["B"], bound["R"])
    return {}


def readable(x: torch.Tensor) -> bool:
    """True if the host can read values of x without waiting for a device, which a CUDA graph does not allow."""
    return x.device.type == "cpu"
