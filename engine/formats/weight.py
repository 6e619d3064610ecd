"""The weight of a linear as a model keeps it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from ..specs import TensorSpec
from .base import Format


@dataclass(frozen=True)
class Weight:
    """W (N, K), stored under its name in one or more formats. The first serves any input, the others special cases.

    dtype: the dtype in which the model multiplies by it. sources: names and rows of the tensors stacked in it, which
    tell where a delta to one of them goes and what another format can be made from.
    """

    name: str
    shape: tuple[int, int]
    dtype: torch.dtype
    formats: tuple[Format, ...]
    sources: tuple[tuple[str, int], ...] = ()

    def names(self, fmt: Format) -> tuple[str, str]:
        """Names of its values and its scales in a format."""
        return f"{self.name}{fmt.suffix}", f"{self.name}{fmt.suffix}.scale"

    def specs(self) -> dict[str, TensorSpec]:
        """Specs of all stored tensors, by name."""
        found = [zip(self.names(fmt), fmt.specs(*self.shape, self.dtype), strict=True) for fmt in self.formats]
        return {name: spec for pairs in found for name, spec in pairs if spec is not None}

    def pack(self, weight: torch.Tensor, scale: torch.Tensor | None = None) -> dict[str, torch.Tensor]:
        """The tensors of `specs`, from a weight of floats or, with one scale per row, of 8-bit values."""
        stored = self.formats[0].stored.pack(weight, scale)
        found = [zip(self.names(fmt), fmt.pack(*stored), strict=True) for fmt in self.formats]
        return {name: tensor for pairs in found for name, tensor in pairs if tensor is not None}

    def by_rows(self, tensors: Mapping[str, torch.Tensor]) -> dict[str, torch.Tensor]:
        """The tensors of the row-major format that the weight was made from, recovered from the stored ones."""
        first = self.formats[0]
        values, scale = (tensors.get(name) for name in self.names(first))
        assert values is not None
        found = zip(self.names(first.stored), first.restored(values, scale), strict=True)
        return {name: tensor for name, tensor in found if tensor is not None}
