"""What a format is: the specs of a weight's tensors, how they are made of the weight, what they stand for and lose."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch

from ..specs import Shape, TensorSpec

Packed = tuple[torch.Tensor, torch.Tensor | None]
"""A weight's values and their scales, None where the format has none."""
ROWS_AT_ONCE = 256
"""Packed together: as many as the caches hold in float32. A multiple of what any format stores together."""


@dataclass(frozen=True)
class Loss:
    """What is lost of a weight, or of several: sums of squares of W, of Wq, of Wq - W, and of products W Wq."""

    weight: float
    quantized: float
    difference: float
    product: float

    def __add__(self, other: Loss) -> Loss:
        return Loss(*(a + b for a, b in zip(vars(self).values(), vars(other).values(), strict=True)))

    @property
    def relative(self) -> float:
        """||Wq - W|| / ||W||; 0 for zeros."""
        return math.sqrt(self.difference / self.weight) if self.weight else 0.0

    @property
    def cosine(self) -> float:
        """<Wq, W> / (||Wq|| ||W||); 1 for zeros."""
        return self.product / math.sqrt(self.weight * self.quantized) if self.weight and self.quantized else 1.0


class Format(ABC):
    """One way to keep a weight W (N, K). Rows are packed alone, so that it does not matter how weights are stacked."""

    name: str
    suffix = ""
    """Of the names of its tensors: the weight's name, the suffix, and for the scales ".scale" after it."""
    by_rows = False
    """The values are a tensor (N, K), row by row, which any op can read."""
    group: int | None = None
    """So many columns of an input are quantized to int8 together by its kernels, 0: a row; None: inputs stay."""
    decodes = False
    """For a few rows of one token alone, beside a format that serves all."""

    @property
    def stored(self) -> Format:
        """The format, row by row, that this one is made of."""
        return self

    def refuses(self, n: int, k: int, dtype: torch.dtype) -> str | None:
        """Why it does not hold a weight (n, k) of a model that computes in `dtype`, or None."""
        return None

    @abstractmethod
    def specs(self, n: int, k: int, dtype: torch.dtype) -> tuple[TensorSpec, TensorSpec | None]:
        """Of the values and of the scales of a weight (n, k)."""

    def size(self, values: Shape) -> Shape:
        """(N, K) of a weight by the shape of its values."""
        return values

    @abstractmethod
    def pack(self, weight: torch.Tensor, scale: torch.Tensor | None = None) -> Packed:
        """A weight (N, K) of floats or, with a scale for each row, of 8 bits, in this format."""

    @abstractmethod
    def matrix(self, values: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype) -> Packed:
        """A matrix (N, K) in `dtype`, and the factor of each of its rows where it leaves one: their product is W."""

    def unpack(
        self, values: torch.Tensor, scale: torch.Tensor | None, dtype: torch.dtype = torch.float32
    ) -> torch.Tensor:
        """The weight (N, K) that they stand for."""
        matrix, factors = self.matrix(values, scale, dtype)
        return matrix if factors is None else matrix * factors[:, None].to(dtype)

    def restored(self, values: torch.Tensor, scale: torch.Tensor | None) -> Packed:
        """The weight in the format that this one is made of."""
        return (values, scale) if self.by_rows else self.stored.pack(self.unpack(values, scale))

    def loss(self, weight: torch.Tensor, values: torch.Tensor | None = None, scale: torch.Tensor | None = None) -> Loss:
        """Of `weight` (N, K) in this format, packed from `values` and `scale` where given: the same in 8 bits."""
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
"""By name."""


def register(fmt: Format) -> None:
    FORMATS[fmt.name] = fmt
