"""The weight of a linear as a model keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..specs import TensorSpec
from .base import Format


@dataclass(frozen=True)
class Weight:
    """W (N, K) by name, in one format or in several: the first serves for any input, the others beside it.

    dtype: what a model computes in that multiplies by it. sources: the tensors that are stacked in it, by name, with
    their rows: where a delta to one of them goes, and what another format can be made of again.
    """

    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    formats: tuple[Format, ...]
    sources: tuple[tuple[str, int], ...] = ()

    def names(self, fmt: Format) -> tuple[str, str]:
        """Of the values and of the scales that it has in a format."""
        return f"{self.name}{fmt.suffix}", f"{self.name}{fmt.suffix}.scale"

    def specs(self) -> dict[str, TensorSpec]:
        """Of all tensors that are kept, by name."""
        found = [zip(self.names(fmt), fmt.specs(*self.shape, self.dtype), strict=True) for fmt in self.formats]
        return {name: spec for pairs in found for name, spec in pairs if spec is not None}

    def pack(self, weight: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The tensors of `specs` from a weight of floats or, with a scale for each row, of 8 bits."""
        stored = self.formats[0].stored.pack(weight, scale)
        found = [zip(self.names(fmt), fmt.pack(*stored), strict=True) for fmt in self.formats]
        return {name: tensor for pairs in found for name, tensor in pairs if tensor is not None}

    def by_rows(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """Out of what is kept of it, the tensors of the format that it was made of, which lies row by row."""
        first = self.formats[0]
        values, scale = (tensors.get(name) for name in self.names(first))
        assert values is not None
        found = zip(self.names(first.stored), first.restored(values, scale), strict=True)
        return {name: tensor for name, tensor in found if tensor is not None}
