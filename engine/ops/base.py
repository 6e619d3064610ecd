"""What an op is: schema, fp32 reference, cost, cases, tolerance, and its implementations by name.

A schema is one line of text, e.g. `x: T[*, K], weight: T[N, K], bias?: T[N] -> y: T[*, N]`:
`T` is a dtype variable (or a fixed one: f32, bf16, i32, ...), `K` a size shared between arguments, `*` any leading
sizes, `?` an optional argument, `!` one that is written in place. `2*F` is divided by 2 to bind F. A dtype or a size
that appears only in an output comes from the node's attributes (`dtype=`, or the size's name) or from the op's `derive`
function, which receives the specs of all arguments as `given`. `derive` also checks what a pattern cannot express;
`any[...]` leaves the whole argument to it.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pkgutil import resolve_name
from typing import Any

import torch

from ..errors import PlanError, SchemaError
from ..specs import DTYPES, Dim, Shape, Size, TensorSpec, dtype_name, product, static

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
                shape += bound["*"] if s == "*" else [_evaluate(s, bound, attrs, op)]
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


def _evaluate(pattern: str, bound: Bound, attrs: Mapping[str, Any], op: str) -> Size:
    total: Size = 0
    for term in pattern.split("+"):
        value: Size = 1
        for part in term.strip().split("*"):
            factor = int(part) if part.isdigit() else bound.get(part, attrs.get(part))
            if factor is None:
                raise SchemaError(f"{op}: size '{part}' of an output is not known; give it as an attribute")
            value = value * factor
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


@dataclass(frozen=True)
class Call:
    """Arguments for one run of an op: tensors in schema order (None where optional and absent) and attributes."""

    args: tuple[torch.Tensor | None, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


Refusal = Callable[[torch.device, Sequence[TensorSpec | None], Mapping[str, Any]], str | None]
Avoided = Callable[[str, str, Sequence[TensorSpec | None], Mapping[str, Any]], str | None]
"""(op, implementation, specs, attributes) -> why the implementation must be skipped though it can serve, or None."""


def _accepts_all(device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
    return None


@dataclass(frozen=True)
class Tunable:
    """A setting that decides how fast an implementation is, and the values worth timing.

    `name` of `module` (or of an object in it) holds the current value. Where it is a function, as some of torch's are,
    calling it without an argument returns the value and calling it with one sets the value.
    """

    module: str
    name: str
    values: tuple[Any, ...]
    decides: Callable[[Sequence[TensorSpec | None]], bool] = lambda specs: True
    """Returns False for calls that the setting does not affect."""

    def get(self) -> Any:
        held = getattr(resolve_name(self.module), self.name)
        return held() if callable(held) else held

    def set(self, value: Any) -> None:
        holder = resolve_name(self.module)
        held = getattr(holder, self.name)
        if callable(held):
            held(value)
        else:
            setattr(holder, self.name, value)


@dataclass(frozen=True)
class Implementation:
    """A function (inputs..., outputs..., **attrs) that writes its outputs, and the conditions under which it serves."""

    name: str
    run: Callable[..., None]
    refuses_call: Refusal
    yields_call: Refusal = _accepts_all
    around: bool = False
    """`run` does more than call its kernel once, so the executor must not bind the kernel call in its place."""
    tunables: tuple[Tunable, ...] = ()

    def refuses(
        self,
        device: torch.device,
        specs: Sequence[TensorSpec | None] = (),
        attrs: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Why this implementation cannot serve on `device` (with these arguments, if given), or None."""
        return self.refuses_call(device, specs, attrs or {})

    def yields(self, device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
        """Why another implementation is the better choice for these arguments though this one can serve, or None."""
        return self.yields_call(device, specs, attrs)


@dataclass
class Op:
    """A fused op. Each file in this folder defines one completely."""

    name: str
    schema: Schema
    reference: Callable[..., Any]
    """(inputs..., **attrs) -> output or tuple of outputs, in float32; writes arguments marked `!` in place."""
    flops: Callable[[Bound, Mapping[str, Any]], int]
    cases: Sequence[Mapping[str, Any]]
    example: Callable[..., Call]
    """(generator, dtype, **case) -> Call: the arguments of one test or benchmark case."""
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)
    rounding_steps: float = 2.0
    """Largest allowed error over largest output, in units of the output dtype's epsilon."""
    read_bytes: Callable[[Bound, Mapping[str, Any]], int] | None = None
    """Bytes moved, where that is not every argument once (gathers, masked attention)."""
    computed_from: Mapping[str, str] = field(default_factory=dict)
    """Outputs computed from another output as stored, and thus with its rounding: {"sumsq": "y"}."""
    quantized: Sequence[str] = ()
    """8-bit outputs that the reference leaves unrounded. An implementation has to be within half a step of them."""
    as_good: Callable[[Sequence[torch.Tensor | None], Mapping[str, torch.Tensor]], str | None] | None = None
    """(arguments before a call, what it wrote by name) -> what is wrong, or None. For ops whose outputs are choices,
    where rounding may lead to a different one that is as good."""
    implementations: dict[str, Implementation] = field(default_factory=dict)

    def implementation(
        self,
        name: str,
        refuses: Refusal = _accepts_all,
        yields: Refusal = _accepts_all,
        around: bool = False,
        tunables: Sequence[Tunable] = (),
    ) -> Callable[[Callable[..., None]], Callable[..., None]]:
        """Register the decorated function. Earlier registrations are preferred.

        `refuses` returns why it cannot serve a call, `yields` why it serves only when asked for by name. `around` says
        that it does more than call one kernel. `tunables` are timed on a GPU against the current values.
        """

        def register(run: Callable[..., None]) -> Callable[..., None]:
            self.implementations[name] = Implementation(name, run, refuses, yields, around, tuple(tunables))
            return run

        return register

    def choose(
        self,
        device: torch.device,
        specs: Sequence[TensorSpec | None],
        attrs: Mapping[str, Any],
        forced: Sequence[str] = (),
        avoided: Avoided | None = None,
    ) -> tuple[Implementation, dict[str, str]]:
        """The first implementation that neither refuses nor yields, and the reasons of those before it.

        If `forced` is given, only those names count, in that order, and the first that does not refuse is chosen. One
        that `avoided` has a reason against is skipped. Raises PlanError if none serves or a forced name is unknown.
        """
        unknown = [name for name in forced if name not in self.implementations]
        if unknown:
            known = ", ".join(self.implementations)
            raise PlanError(f"{self.name}: no implementation '{unknown[0]}'; there are: {known}")
        refused: dict[str, str] = {}
        for name in forced or self.implementations:
            implementation = self.implementations[name]
            reason = None if avoided is None else avoided(self.name, name, specs, attrs)
            reason = reason or implementation.refuses(device, specs, attrs)
            if reason is None and not forced:
                reason = implementation.yields(device, specs, attrs)
            if reason is None:
                return implementation, refused
            refused[name] = reason
        reasons = "; ".join(f"{name}: {reason}" for name, reason in refused.items())
        raise PlanError(f"{self.name}: no implementation serves on {device}: {reasons}")

    def bytes_moved(self, bound: Bound, attrs: Mapping[str, Any], specs: Sequence[TensorSpec | None]) -> int:
        """Bytes read and written by one call. Sizes must be concrete."""
        if self.read_bytes is not None:
            return self.read_bytes(bound, attrs)
        return sum(static(product(s.shape)) * s.dtype.itemsize for s in specs if s is not None)


_REGISTRY: dict[str, Op] = {}


def register(op: Op) -> Op:
    if op.name in _REGISTRY:
        raise SchemaError(f"op '{op.name}' is registered twice")
    _REGISTRY[op.name] = op
    return op


def get_op(name: str) -> Op:
    if name not in _REGISTRY:
        raise SchemaError(f"no op '{name}'; known: {', '.join(sorted(_REGISTRY))}")
    return _REGISTRY[name]


def all_ops() -> dict[str, Op]:
    return dict(sorted(_REGISTRY.items()))


def normal(generator: torch.Generator, *shape: int, dtype: torch.dtype = torch.float32) -> torch.Tensor:
    """Standard normal samples for cases."""
    return torch.randn(shape, generator=generator).to(dtype)


def quiet(x: torch.Tensor, constant: float = 0.0) -> torch.Tensor:
    """x (N, ..., C), N >= 2, changed in place: x[0] is constant and x[-1] has variance 1e-6, where eps matters."""
    x[0] = constant
    x[-1] *= 1e-3 / float(x[-1].float().std())
    return x
