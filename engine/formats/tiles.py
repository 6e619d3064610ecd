"""tiles and int8_tiles: weights in AMX tiles, [N / 16][K / k] blocks of k x 16 values, each [k / v][16][v].

k values fill 64 bytes and v values fill four. A tile register wants the right operand of a product in this order: the
values of v neighboring columns of W side by side. A tiled weight keeps its shape (N, K), dtype and scales; only the
order of its bytes differs. Kernels quantize their inputs row by row for int8 tiles.
"""

from __future__ import annotations

import torch

from ..specs import TensorSpec
from .base import Format, Packed, register
from .dense import DENSE
from .rows import INT8

ROWS = 16
BYTES = 64
"""Bytes in a row of a tile."""


class Tiles(Format):
    def __init__(self, name: str, of: Format, group: int | None) -> None:
        self.name, self.of, self.group = name, of, group

    @property
    def stored(self) -> Format:
        return self.of

    def refuses(self, n: int, k: int, dtype: torch.dtype) -> str | None:
        held = self.of.specs(n, k, dtype)[0].dtype
        if held not in (torch.bfloat16, torch.int8):
            return f"tiles hold bfloat16 or int8, not {held}"
        columns = BYTES // held.itemsize
        return f"tiles need multiples of {ROWS} x {columns}, got {n} x {k}" if n % ROWS or k % columns else None

    def specs(self, n: int, k: int, dtype: torch.dtype) -> tuple[TensorSpec, TensorSpec | None]:
        return self.of.specs(n, k, dtype)

    def pack(self, weight: torch.Tensor, scale: torch.Tensor | None = None) -> Packed:
        values, scale = self.of.pack(weight, scale)
        return tile(values), scale

    def restored(self, values: torch.Tensor, scale: torch.Tensor | None) -> Packed:
        return untile(values), scale

    def matrix(self, values: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> Packed:
        return self.of.matrix(untile(values), scale, dtype)


TILES = {DENSE: Tiles("tiles", DENSE, None), INT8: Tiles("int8_tiles", INT8, 0)}
"""Tiled formats, by the format that their values come from."""
for _format in TILES.values():
    register(_format)


def tile(weight: torch.Tensor) -> torch.Tensor:
    """A copy of weight (N, K) with its bytes in the order of tiles."""
    n, k = weight.shape
    quads = (n // ROWS, ROWS, k * weight.itemsize // BYTES, BYTES // 4)
    return _permuted(weight, quads, (0, 2, 3, 1))


def untile(tiled: torch.Tensor) -> torch.Tensor:
    """The inverse of `tile`."""
    n, k = tiled.shape
    quads = (n // ROWS, k * tiled.itemsize // BYTES, BYTES // 4, ROWS)
    return _permuted(tiled, quads, (0, 3, 1, 2))


def _permuted(weight: torch.Tensor, quads: tuple[int, ...], order: tuple[int, ...]) -> torch.Tensor:
    """A permuted copy, moved four bytes at a time."""
    view = weight.contiguous().view(torch.int32).view(quads)
    return view.permute(order).contiguous().view(weight.dtype).view(weight.shape)
