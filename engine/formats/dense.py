"""dense: W (N, K) as it is, row by row."""

from __future__ import annotations

import torch

from ..specs import TensorSpec
from .base import Format, Packed, register


class Dense(Format):
    name = "dense"
    by_rows = True

    def specs(self, n: int, k: int, dtype: torch.dtype) -> tuple[TensorSpec, TensorSpec | None]:
        return TensorSpec((n, k), dtype), None

    def pack(self, weight: torch.Tensor, scale: torch.Tensor | None = None) -> Packed:
        return (weight if scale is None else weight * scale[:, None]), None

    def matrix(self, values: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> Packed:
        return values.to(dtype), None


DENSE = Dense()
register(DENSE)
