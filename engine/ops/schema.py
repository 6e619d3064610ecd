"""The signature of an op, one line of text: `x: T[*, K], weight: T[N, K], bias?: T[N] -> y: T[*, N]`.

`T` is a dtype variable (or a fixed one: f32, bf16, i32, ...), `K` a size shared between arguments, `*` any leading
sizes, `?` an optional argument, `!` one that is written in place. `2*F` is divided by 2 to bind F. A dtype or a size
that appears only in an output comes from the node's attributes (`dtype=`, or the size's name) or from the op's `derive`
function, which receives the specs of all arguments as `given`. `derive` also checks what a pattern cannot express;
`any[...]` leaves the whole argument to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from ..errors import SchemaError
from ..specs import DTYPES, Dim, Shape, Size, TensorSpec, dtype_name, product

Bound = dict[str, Any]
Derive = Callable[[Bound, Mapping[str, Any]], Mapping[str, Any]]
_ARG = re.compile(r"(\w+)([?!]*): (\w+)\[([^\]]*)\]")


@dataclass(frozen=True)
class Arg:
    name: str
    dtype: str
    shape: tuple[str, ...]
    optional: bool = False
    mutated: bool = False

    def __str__(self) -> str:
        return f"{self.dtype}[{', '.join(self.shape)}]"


@dataclass(frozen=True)
class Schema:
    """The signature of an op; `infer` checks the arguments of a call and gives the specs of its outputs."""

    inputs: tuple[Arg, ...]
    outputs: tuple[Arg, ...]
    derive: Derive | None = None

    @staticmethod
    def parse(text: str, derive: Derive | None = None) -> Schema:
        def args(part: str) -> tuple[Arg, ...]:
            return tuple(
                Arg(name, dtype, tuple(s.strip() for s in shape.split(",")), "?" in flags, "!" in flags)
                for name, flags, dtype, shape in _ARG.findall(part)
            )

        left, _, right = text.partition("->")
        return Schema(args(left), args(right), derive)

    def bind(self, op: str, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any], label: str = "") -> Bound:
        """Sizes and dtype variables of a call, by name. Raises SchemaError with op, argument, expected, got."""
        where = f"{op} ({label})" if label and label != op else op
        if len(specs) != len(self.inputs):
            raise SchemaError(f"{where}: expected {len(self.inputs)} arguments, got {len(specs)}")
        bound: Bound = {}
        for arg, spec in zip(self.inputs, specs, strict=True):
            if spec is None:
                if not arg.optional:
                    raise SchemaError(f"{where}: argument '{arg.name}' is missing, expected {arg}")
                continue
            known = dict(bound)  # by the arguments before this one, which is not to explain itself
            if not (_bind_dtype(arg.dtype, spec.dtype, bound) and _bind_shape(arg.shape, spec.shape, bound)):
                raise SchemaError(f"{where}: argument '{arg.name}' expected {_expected(arg, known)}, got {spec}")
        if self.derive is not None:
            try:
                given = {arg.name: spec for arg, spec in zip(self.inputs, specs, strict=True)}
                bound.update(self.derive({**bound, "given": given}, attrs))
            except SchemaError as error:
                raise SchemaError(f"{where}: {error}") from None
        return bound

    def infer(
        self, op: str, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any], label: str = ""
    ) -> list[TensorSpec]:
        """Specs of a call's outputs."""
        bound = self.bind(op, specs, attrs, label)
        outputs = []
        for arg in self.outputs:
            dtype = DTYPES.get(arg.dtype) or bound.get(arg.dtype) or attrs.get("dtype")
            if dtype is None:
                raise SchemaError(f"{op}: output '{arg.name}' needs the attribute dtype=")
            shape: list[Size] = []
            for s in arg.shape:
                shape += bound["*"] if s == "*" else [evaluate(s, bound, attrs, op)]
            outputs.append(TensorSpec(tuple(shape), dtype))
        return outputs


def _bind_dtype(name: str, dtype: torch.dtype, bound: Bound) -> bool:
    if name in DTYPES or name == "any":
        return DTYPES.get(name, dtype) is dtype
    return bool(bound.setdefault(name, dtype) is dtype)


def _bind_shape(pattern: tuple[str, ...], shape: Shape, bound: Bound) -> bool:
    if pattern[0] == "...":
        return True
    if pattern[0] == "*":
        lead = len(shape) - len(pattern) + 1
        if lead < 0 or bound.setdefault("*", list(shape[:lead])) != list(shape[:lead]):
            return False
        pattern, shape = pattern[1:], shape[lead:]
    return len(pattern) == len(shape) and all(_bind_size(p, s, bound) for p, s in zip(pattern, shape, strict=True))


def _bind_size(pattern: str, size: Size, bound: Bound) -> bool:
    if pattern.isdigit():
        return size == int(pattern)
    factor, _, name = pattern.rpartition("*")
    if name in bound:
        return bool(bound[name] * (int(factor) if factor else 1) == size)
    if factor:
        quotient = (
            size.divided(int(factor))
            if isinstance(size, Dim)
            else (None if size % int(factor) else size // int(factor))
        )
        if quotient is None:
            return False
        size = quotient
    bound[name] = size
    return True


def evaluate(formula: str, bound: Bound, attrs: Mapping[str, Any], op: str) -> Size:
    """A sum of products, such as `2*rows*K + N`, of numbers, of sizes, of `rows`, which is the product of the sizes
    `*`, and of dtypes, which count as their bytes. What is not bound is an attribute."""
    total: Size = 0
    for term in formula.split("+"):
        value: Size = 1
        for part in term.strip().split("*"):
            factor = int(part) if part.isdigit() else bound.get(part, attrs.get(part))
            if part == "rows":
                factor = product(bound["*"])
            if factor is None:
                raise SchemaError(f"{op}: size '{part}' of an output is not known; give it as an attribute")
            value = value * (factor.itemsize if isinstance(factor, torch.dtype) else factor)
        total = value + total
    return total


def _expected(arg: Arg, bound: Bound) -> str:
    dtype = dtype_name(bound[arg.dtype]) if arg.dtype in bound else arg.dtype
    sizes = []
    for s in arg.shape:
        name = s.rpartition("*")[2]
        known = bound.get("*" if s == "*" else name)
        sizes.append(s if known is None or s.isdigit() else f"{s} with {name or '*'}={known}")
    return f"{dtype}[{', '.join(sizes)}]"
