"""What an op is: schema, fp32 reference, cost, cases, tolerance, and its implementations by name."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache, cached_property, partial
from importlib import import_module
from pkgutil import resolve_name
from typing import Any

import torch

from ... import triton_kernels
from ..device import native
from ..errors import PlanError, SchemaError
from ..specs import TensorSpec, product, static
from .schema import Bound, Derive, Schema, evaluate


@dataclass(frozen=True)
class Call:
    """Arguments for one run of an op: tensors in schema order (None where optional and absent) and attributes."""

    args: tuple[torch.Tensor | None, ...]
    attrs: Mapping[str, Any] = field(default_factory=dict)


class Given:
    """One call's arguments by the names of the op's schema (None where one is absent), and its attributes.

    Arguments are tensors, outputs included, where an implementation runs; they are specs, without the outputs, where an
    implementation is asked whether it serves on `device`.
    """

    def __init__(
        self,
        op: Op,
        values: Sequence[Any],
        attrs: Mapping[str, Any],
        device: torch.device | None = None,
    ) -> None:
        self.op, self.attrs = op, attrs
        self.tensors = dict(zip(op.names, values, strict=False))
        self.device = device or next(t.device for t in values if t is not None)
        vars(self).update(op.defaults, **self.tensors, **attrs)

    def __getattr__(self, name: str) -> Any:
        raise AttributeError(f"{self.op.name} has neither an argument nor an attribute '{name}'")

    def get(self, name: str) -> Any:
        """The argument or attribute, or None where the op has none of this name."""
        return vars(self).get(name)

    def floats(self) -> list[torch.dtype]:
        """The floating dtypes of the arguments, and of the output if the attribute `dtype` names it."""
        dtypes = [given.dtype for given in self.tensors.values() if given is not None]
        return [dtype for dtype in (*dtypes, self.attrs.get("dtype")) if dtype is not None and dtype.is_floating_point]


Body = Callable[[Given], None]
Cost = Callable[[Bound, Mapping[str, Any]], int]
"""What a call costs, by the sizes and dtypes of its schema, and by its attributes."""
Reason = Callable[[Given], str | None]
"""Why an implementation does not serve a call, or None."""
Avoided = Callable[[str, str, Sequence[TensorSpec | None], Mapping[str, Any]], str | None]
"""(op, implementation, specs, attributes) -> why the implementation must be skipped though it can serve, or None."""


def _none(*given: Any) -> str | None:
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
    """A function that computes an op's outputs, and the conditions under which it serves."""

    name: str
    op: Op = field(repr=False, compare=False)
    body: Body
    """Writes the outputs of a call."""
    on: Callable[..., str | None] = _none
    """(device, *floating dtypes) -> why it cannot serve any call there, or None."""
    cannot: Reason = _none
    """Why it cannot serve a call, whose arguments are specs."""
    should_not: Reason = _none
    """Why it serves a call, whose arguments are specs, only if it is asked for by name."""
    around: bool = False
    """`body` does more than call its kernel once, so the executor must not bind the kernel call in its place."""
    tunables: tuple[Tunable, ...] = ()

    def bound(self, tensors: Sequence[torch.Tensor | None], attrs: Mapping[str, Any]) -> Callable[[], None]:
        """A call on these inputs and outputs, in the schema's order."""
        return partial(self.body, Given(self.op, tensors, attrs))

    def run(self, *tensors: torch.Tensor | None, **attrs: Any) -> None:
        """Compute the outputs, which follow the inputs in the schema's order."""
        self.bound(tensors, attrs)()

    def refuses(
        self,
        device: torch.device,
        specs: Sequence[TensorSpec | None] = (),
        attrs: Mapping[str, Any] | None = None,
    ) -> str | None:
        """Why this implementation cannot serve on `device` (with these arguments, if given), or None."""
        if not specs:
            return self.on(device)
        given = Given(self.op, specs, attrs or {}, device)
        return self.cannot(given) or self.on(device, *given.floats())

    def yields(self, device: torch.device, specs: Sequence[TensorSpec | None], attrs: Mapping[str, Any]) -> str | None:
        """Why another implementation is the better choice for these arguments though this one can serve, or None."""
        return self.should_not(Given(self.op, specs, attrs, device)) if specs else None


@dataclass
class Op:
    """A fused op. Each file in this folder defines one completely."""

    name: str
    schema: Schema
    reference: Callable[..., Any]
    """(inputs..., **attrs) -> output or tuple of outputs, in float32; writes arguments marked `!` in place."""
    cases: Sequence[Mapping[str, Any]]
    example: Callable[..., Call]
    """(generator, dtype, **case) -> Call: the arguments of one test or benchmark case."""
    flops: Cost
    read_bytes: Cost | None = None
    """Bytes moved, where that is not every argument once (gathers, masked attention)."""
    dtypes: Sequence[torch.dtype] = (torch.float32, torch.bfloat16)
    rounding_steps: float = 2.0
    """Largest allowed error over largest output, in units of the output dtype's epsilon."""
    computed_from: Mapping[str, str] = field(default_factory=dict)
    """Outputs computed from another output as stored, and thus with its rounding: {"sumsq": "y"}."""
    quantized: Sequence[str] = ()
    """8-bit outputs that the reference leaves unrounded. An implementation has to be within half a step of them."""
    as_good: Callable[[Sequence[torch.Tensor | None], Mapping[str, torch.Tensor]], str | None] | None = None
    """(arguments before a call, what it wrote by name) -> what is wrong, or None. For ops whose outputs are choices,
    where rounding may lead to a different one that is as good."""
    defaults: Mapping[str, Any] = field(default_factory=dict)
    """Values of attributes that a call may leave out."""
    implementations: dict[str, Implementation] = field(default_factory=dict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Inputs and outputs in the schema's order."""
        return tuple(arg.name for arg in (*self.schema.inputs, *self.schema.outputs))

    @cached_property
    def written(self) -> frozenset[str]:
        """The outputs, and the inputs that are written in place."""
        mutated = (arg for arg in self.schema.inputs if arg.mutated)
        return frozenset(arg.name for arg in (*mutated, *self.schema.outputs))

    def implementation(
        self,
        name: str,
        on: Callable[..., str | None] = _none,
        cannot: Reason = _none,
        should_not: Reason = _none,
        around: bool = False,
        tunables: Sequence[Tunable] = (),
    ) -> Callable[[Body], Body]:
        """Register the decorated function, see Implementation. Earlier registrations are preferred.

        `tunables` are timed on a GPU against the current values.
        """

        def register(body: Body) -> Body:
            self.implementations[name] = Implementation(
                name, self, body, on, cannot, should_not, around, tuple(tunables)
            )
            return body

        return register

    def kernel(
        self,
        name: str,
        members: Callable[[Given], Mapping[str, Any]],
        cannot: Reason = _none,
        should_not: Reason = _none,
        kernel: str | Callable[[Given], str] | None = None,
    ) -> None:
        """Register a compiled kernel, of the op's name if none is given: on CPUs, with AMX or on CUDA devices.

        `kernel` may also be a function that names the kernel for a call.

        Its struct takes what `members` gives, and else the arguments and attributes by their names (see `filled`).
        name: "native", "amx" or "cuda".
        """
        on = {"native": native.refuses, "amx": native.refuses_amx, "cuda": native.refuses_cuda}[name]

        @self.implementation(name, on, cannot, should_not)
        def run(call: Given) -> None:
            called = kernel(call) if callable(kernel) else kernel or self.name
            given = filled(called, call, members(call))
            if name == "cuda":
                native.run_cuda(called, call.device, **given)
            else:
                native.run(called, **given)

    def triton(
        self,
        module: str,
        cannot: Reason = _none,
        launch: str = "launch",
        tunables: Sequence[Tunable] = (),
    ) -> None:
        """Register a Triton kernel: `launch` of a module of triton_kernels, which names what it takes as the op does.

        An argument that the op does not have is None.
        """

        @self.implementation("triton", triton_kernels.refuses, cannot, tunables=tunables)
        def run(call: Given) -> None:
            launcher = getattr(import_module(f"{triton_kernels.__name__}.{module}"), launch)  # imports triton
            launcher(**{name: call.get(name) for name in _parameters(launcher)})

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


@cache
def _parameters(function: Callable[..., Any]) -> tuple[str, ...]:
    """The names of a function's parameters, looked up once: a walk without graphs launches every node anew."""
    return tuple(inspect.signature(function).parameters)


def filled(kernel: str, call: Given, members: Mapping[str, Any]) -> dict[str, Any]:
    """All members of a compiled kernel's struct: out of `members`, else the argument or attribute of the same name.

    An argument that is only read is made contiguous. `x_dtype` is the dtype of x, float32 if x is absent; `dtype` is
    that of the first argument.
    """
    found = {}
    for name in native.members(kernel):
        of = name.removesuffix("_dtype")
        if name in members:
            found[name] = members[name]
        elif name == "dtype":
            found[name] = call.tensors[call.op.names[0]].dtype
        elif of != name and of in call.tensors:
            found[name] = torch.float32 if call.tensors[of] is None else call.tensors[of].dtype
        elif name in call.tensors:
            tensor = call.tensors[name]
            found[name] = tensor if tensor is None or name in call.op.written else tensor.contiguous()
        elif name in vars(call):
            found[name] = call.get(name)
    return found


_REGISTRY: dict[str, Op] = {}


def counted(formula: str, op: str = "") -> Cost:
    return lambda bound, attrs: static(evaluate(formula, bound, attrs, op))


def define(
    name: str,
    signature: str,
    reference: Callable[..., Any],
    cases: Sequence[Mapping[str, Any]],
    example: Callable[..., Call],
    *,
    flops: str = "0",
    derive: Derive | None = None,
    read_bytes: str | Cost | None = None,
    **fields: Any,
) -> Op:
    """Register an op. `signature` and `derive` make its schema, and `fields` are further members of Op.

    flops and read_bytes are formulas over the names of the signature, such as "2*rows*K*N" (see schema.evaluate).
    """
    if name in _REGISTRY:
        raise SchemaError(f"op '{name}' is registered twice")
    moved = counted(read_bytes, name) if isinstance(read_bytes, str) else read_bytes
    op = Op(name, Schema.parse(signature, derive), reference, cases, example, counted(flops, name), moved, **fields)
    _REGISTRY[name] = op
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
