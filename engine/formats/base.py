"""The interface of a weight format: the specs of its tensors, packing, unpacking and the loss of precision."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from ..specs import Shape, TensorSpec

Packed = tuple[torch.Tensor, torch.Tensor | None]
"""A weight's values, and their scales (None if the format has none)."""
ROWS_AT_ONCE = 256
"""Values packed at a time: as many as fit in the caches in float32. A multiple of every format's block size."""


@dataclass(frozen=True)
class Loss:
    """The precision lost by one or several weights, as sums of W^2, Wq^2, (Wq - W)^2 and the products W Wq."""

    weight: float
    quantized: float
    difference: float
    product: float

    def __add__(self, other: Loss) -> Loss:
        return Loss(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def relative(self) -> float:
        """||Wq - W|| / ||W||; 0 for a weight of zeros."""
        return math.sqrt(self.difference / self.weight) if self.weight else 0.0

    @property
    def cosine(self) -> float:
        """<Wq, W> / (||Wq|| ||W||); 1 for a weight of zeros."""
        return self.product / math.sqrt(self.weight * self.quantized) if self.weight and self.quantized else 1.0


class Format(ABC):
    """One way to store a weight W (N, K). Each row is packed by itself, so stacking weights changes nothing."""

    name: str
    suffix = ""
    """Suffix of its tensors' names: a weight's name plus this suffix; its scales add ".scale" to that."""
    by_rows = False
    """Whether the values are a row-major tensor (N, K) that any op can read."""
    group: int | None = None
    """Columns of an input that kernels quantize to int8 together. 0: a whole row; None: inputs are not quantized."""
    decodes = False
    """Whether it serves only a few rows of one token each, and a second format has to serve all other inputs."""

    @property
    def stored(self) -> Format:
        """The row-major format that this one is made from."""
        return self

    def refuses(self, n: int, k: int, dtype: torch.dtype) -> str | None:
        """Why the format cannot hold a weight (n, k) of a model that computes in `dtype`, or None."""
        return None

    @abstractmethod
    def specs(self, n: int, k: int, dtype: torch.dtype) -> tuple[TensorSpec, TensorSpec | None]:
        """Specs of the values and the scales of a weight (n, k)."""

    def size(self, values: Shape) -> Shape:
        """(N, K) of a weight, given the shape of its values."""
        return values

    @abstractmethod
    def pack(self, weight: torch.Tensor, scale: torch.Tensor | None = None) -> Packed:
        """Pack a weight (N, K) of floats or, with one scale per row, of 8-bit values."""

    @abstractmethod
    def matrix(self, values: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> Packed:
        """(matrix, factor): a matrix (N, K) in `dtype`, and one factor per row or None. Their product is W."""

    def unpack(
        self, values: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """The weight (N, K) that the values and scales represent."""
        matrix, factors = self.matrix(values, scale, dtype)
        return matrix if factors is None else matrix * factors[:, None].to(dtype)

    def restored(self, values: torch.Tensor, scale: torch.Tensor | None) -> Packed:
        """The weight in the format that this one is made from."""
        return (values, scale) if self.by_rows else self.stored.pack(self.unpack(values, scale))

    def loss(self, weight: torch.Tensor, values: torch.Tensor | None = None, scale: torch.Tensor | None = None) -> Loss:
        """The loss of storing `weight` (N, K) in this format; `values` and `scale` may give it in 8 bits."""
        sums = torch.zeros(4, dtype=torch.float64)
        for start in range(0, len(weight), ROWS_AT_ONCE):
            rows = slice(start, start + ROWS_AT_ONCE)
            source = (weight if values is None else values)[rows]
            held = self.unpack(*self.pack(source, None if scale is None else scale[rows]), torch.float64)
            exact = weight[rows].double()
            pairs = ((exact, exact), (held, held), (held - exact, held - exact), (exact, held))
            sums += torch.stack([(a * b).sum() for a, b in pairs])
        return Loss(*sums.tolist())


FORMATS: dict[str, Format] = {}
"""Formats by name."""


def register(fmt: Format) -> None:
    FORMATS[fmt.name] = fmt
