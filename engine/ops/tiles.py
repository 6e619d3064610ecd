"""Weights in AMX tiles: [N / 16][K / k] blocks of k x 16 values, each [k / v][16][v]; k fill 64 bytes, v four.

The order in which a tile register wants the right operand of a product: the values of v neighboring columns of W
side by side. A tiled weight keeps its shape (N, K) and its bytes are in that order.
"""

from __future__ import annotations

import torch

ROWS = 16
BYTES = 64
"""Of a row of a tile."""
DTYPES = (torch.bfloat16, torch.int8)


def ragged(n: int, k: int, dtype: torch.dtype) -> str | None:
    """Why a weight (n, k) does not fit into tiles, or None."""
    if dtype not in DTYPES:
        return f"tiles hold bfloat16 or int8, not {dtype}"
    columns = BYTES // dtype.itemsize
    if n % ROWS or k % columns:
        return f"tiles hold multiples of {ROWS} x {columns}, not {n} x {k}"
    return None


def tile(weight: torch.Tensor) -> torch.Tensor:
    """A copy of weight (N, K) with its bytes in the order of tiles."""
    n, k = weight.shape
    quads = (n // ROWS, ROWS, k * weight.itemsize // BYTES, BYTES // 4)
    return _permuted(weight, quads, (0, 2, 3, 1))


def untile(tiled: torch.Tensor) -> torch.Tensor:
    """The weight of which `tiled` is the copy by `tile`."""
    n, k = tiled.shape
    quads = (n // ROWS, k * tiled.itemsize // BYTES, BYTES // 4, ROWS)
    return _permuted(tiled, quads, (0, 3, 1, 2))


def _permuted(weight: torch.Tensor, quads: tuple[int, ...], order: tuple[int, ...]) -> torch.Tensor:
    """Four bytes at a time."""
    view = weight.contiguous().view(torch.int32).view(quads)
    return view.permute(order).contiguous().view(weight.dtype).view(weight.shape)
