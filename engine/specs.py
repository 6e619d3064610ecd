"""Symbolic sizes, and the shape and dtype of a tensor."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from .errors import GraphError

Monomial = tuple[str, ...]


@dataclass(frozen=True)
class Dim:
    """A symbolic size: a polynomial with integer coefficients, e.g. `P + 577` or `2*R`. Equal iff identical."""

    terms: tuple[tuple[Monomial, int], ...]

    @staticmethod
    def symbol(name: str) -> Dim:
        return Dim((((name,), 1),))

    @staticmethod
    def _of(terms: Mapping[Monomial, int]) -> Size:
        kept = tuple(sorted((m, c) for m, c in terms.items() if c))
        if not kept:
            return 0
        if len(kept) == 1 and kept[0][0] == ():
            return kept[0][1]
        return Dim(kept)

    def __add__(self, other: Size) -> Size:
        total = dict(self.terms)
        for m, c in _terms(other):
            total[m] = total.get(m, 0) + c
        return Dim._of(total)

    __radd__ = __add__

    def __sub__(self, other: Size) -> Size:
        return self + other * -1

    def __rsub__(self, other: int) -> Size:
        return self * -1 + other

    def __mul__(self, other: Size) -> Size:
        total: dict[Monomial, int] = {}
        for m, c in self.terms:
            for n, d in _terms(other):
                key = tuple(sorted(m + n))
                total[key] = total.get(key, 0) + c * d
        return Dim._of(total)

    __rmul__ = __mul__

    def divided(self, by: int) -> Size | None:
        """self / by, or None if `by` does not divide every coefficient."""
        if any(c % by for _, c in self.terms):
            return None
        return Dim._of({m: c // by for m, c in self.terms})

    def bind(self, sizes: Mapping[str, int]) -> int:
        total = 0
        for m, c in self.terms:
            for name in m:
                if name not in sizes:
                    raise GraphError(f"size '{self}': symbol '{name}' is not bound; the bucket gives {dict(sizes)}")
                c *= sizes[name]
            total += c
        return total

    def __str__(self) -> str:
        return "+".join("*".join(([str(c)] if c != 1 or not m else []) + list(m)) for m, c in self.terms)

    __repr__ = __str__


Size = int | Dim
Shape = tuple[Size, ...]


def _terms(size: Size) -> tuple[tuple[Monomial, int], ...]:
    return size.terms if isinstance(size, Dim) else (((), size),)


def bind(size: Size, sizes: Mapping[str, int]) -> int:
    """The integer value of `size` under `sizes`."""
    return size.bind(sizes) if isinstance(size, Dim) else size


def static(size: Size) -> int:
    """`size` if it is a number; raises GraphError if it is symbolic."""
    if isinstance(size, Dim):
        raise GraphError(f"size '{size}' is symbolic here, expected a number; bind it first")
    return size


def product(shape: Sequence[Size]) -> Size:
    total: Size = 1
    for s in shape:
        total = total * s
    return total


def contiguous_strides(shape: Sequence[Size]) -> Shape:
    """Row-major strides, in elements."""
    strides: list[Size] = []
    step: Size = 1
    for s in reversed(shape):
        strides.append(step)
        step = step * s
    return tuple(reversed(strides))


@dataclass(frozen=True)
class TensorSpec:
    """Shape and dtype."""

    shape: Shape
    dtype: torch.dtype

    def __str__(self) -> str:
        return f"{dtype_name(self.dtype)}[{', '.join(str(s) for s in self.shape)}]"


_DTYPE_NAMES = {
    torch.float32: "f32",
    torch.bfloat16: "bf16",
    torch.float16: "f16",
    torch.int32: "i32",
    torch.int64: "i64",
    torch.uint8: "u8",
    torch.int8: "i8",
    torch.float8_e4m3fn: "e4m3",
    torch.bool: "bool",
}
DTYPES = {name: dtype for dtype, name in _DTYPE_NAMES.items()}


def dtype_name(dtype: torch.dtype) -> str:
    return _DTYPE_NAMES.get(dtype, str(dtype))
