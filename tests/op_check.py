"""One implementation of an op against the op's one reference, between guards that nobody may touch.

The reference runs twice, in float32 and, its `.float()` turned into `.double()`, in float64. The latter is the truth;
the distance between the two is how much noise evaluating the formula in float32 makes on this data (accumulation,
large angles), which no tolerance in units of an epsilon can know. An implementation may add or multiply in another
order, so it gets NOISE times that distance, besides the op's own rounding_steps * eps(output dtype) * largest output.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any
from unittest.mock import patch

import torch
from flashjanus.engine.device import native
from flashjanus.engine.ops import Call, Op
from flashjanus.engine.specs import TensorSpec
from torch.overrides import TorchFunctionMode

NOISE = 4.0
GUARD = 64  # bytes before and after every tensor: keeps the tensor as aligned as torch's own
POISON = 0xFF  # NaN in every float dtype, -1 in every signed one
CPU = torch.device("cpu")


class InFloat64(TorchFunctionMode):
    """Evaluates a reference in float64: `.float()` gives float64, and so does every factory asked for float32."""

    def __torch_function__(
        self, function: Callable[..., Any], types: Any, args: tuple[Any, ...] = (), kwargs: dict[str, Any] | None = None
    ) -> Any:
        kwargs = dict(kwargs or {})
        if kwargs.get("dtype") is torch.float32:
            kwargs["dtype"] = torch.float64
        if function is torch.Tensor.float:
            function = torch.Tensor.double
        return function(*args, **kwargs)


class Guarded:
    """A tensor of given strides inside a poisoned buffer; `poisoned` leaves the tensor itself poisoned too."""

    def __init__(self, like: torch.Tensor, *, poisoned: bool = False, device: torch.device = CPU) -> None:
        reach = sum((size - 1) * stride for size, stride in zip(like.shape, like.stride(), strict=True))
        self.size = (reach + 1 if like.numel() else 0) * like.dtype.itemsize
        self.buffer = torch.full((GUARD + self.size + GUARD,), POISON, dtype=torch.uint8, device=device)
        inside = self.buffer[GUARD : GUARD + self.size].view(like.dtype)
        self.tensor = inside.as_strided(like.shape, like.stride())
        if not poisoned:
            held = like.as_strided(inside.shape, (1,)) if like.numel() else inside
            inside.copy_(held)
        self.before = self.buffer.clone()

    def untouched_around(self) -> bool:
        """True if no byte outside of the tensor has changed: neither a guard nor a gap between its rows."""
        now = self.tensor.clone()
        self.tensor.copy_(self.window(self.before))
        same = self.untouched()
        self.tensor.copy_(now)
        return same

    def window(self, buffer: torch.Tensor) -> torch.Tensor:
        inside = buffer[GUARD : GUARD + self.size].view(self.tensor.dtype)
        return inside.as_strided(self.tensor.shape, self.tensor.stride())

    def untouched(self) -> bool:
        return torch.equal(self.buffer, self.before)


def official(op: Op, call: Call) -> Call:
    """The call as official numerics makes it: bfloat16 wherever the schema leaves the dtype open, but for 8 bits."""
    fixed = ("f32", "i32", "u8", "any")
    args = tuple(
        t.bfloat16() if t is not None and t.is_floating_point() and t.itemsize > 1 and arg.dtype not in fixed else t
        for arg, t in zip(op.schema.inputs, call.args, strict=True)
    )
    rounded = {"dtype": torch.bfloat16} if "dtype" in call.attrs and call.attrs["dtype"].itemsize > 1 else {}
    return Call(args, {**call.attrs, **rounded})


def make_call(op: Op, case: Mapping[str, Any], dtype: torch.dtype, bf16_everywhere: bool, seed: int = 0) -> Call:
    call = op.example(torch.Generator().manual_seed(seed), dtype, **case)
    return official(op, call) if bf16_everywhere else call


def specs_of(call: Call) -> list[TensorSpec | None]:
    return [None if t is None else TensorSpec(tuple(t.shape), t.dtype) for t in call.args]


def reference(op: Op, call: Call, *, exact: bool) -> dict[str, torch.Tensor]:
    """Outputs and mutated arguments by name, in float64 where `exact`, unrounded except by the reference itself."""
    args = [None if t is None else t.clone() for t in call.args]
    if exact:
        with InFloat64():
            result = op.reference(*args, **call.attrs)
    else:
        result = op.reference(*args, **call.attrs)
    outputs = () if result is None else result if isinstance(result, tuple) else (result,)
    named = {arg.name: t for arg, t in zip(op.schema.outputs, outputs, strict=True)}
    return named | {arg.name: t for arg, t in zip(op.schema.inputs, args, strict=True) if arg.mutated and t is not None}


def run(op: Op, implementation: str, call: Call, device: torch.device = CPU) -> dict[str, torch.Tensor]:
    """Outputs and mutated arguments by name, on the CPU; asserts that nothing else was written."""
    specs = op.schema.infer(op.name, specs_of(call), call.attrs)
    inputs = [None if t is None else Guarded(t, device=device) for t in call.args]
    outputs = [Guarded(torch.empty(s.shape, dtype=s.dtype), poisoned=True, device=device) for s in specs]
    buffers = [None if b is None else b.tensor for b in (*inputs, *outputs)]
    name, _, isa = implementation.partition(" ")
    with patch.object(native, "run", partial(native.run, isa=isa or None)):
        op.implementations[name].run(*buffers, **call.attrs)
    written: dict[str, torch.Tensor] = {}
    for arg, buffer in zip((*op.schema.inputs, *op.schema.outputs), (*inputs, *outputs), strict=True):
        if buffer is None:
            continue
        if arg.mutated or arg in op.schema.outputs:
            assert buffer.untouched_around(), f"{op.name}: {implementation} wrote outside of '{arg.name}'"
            written[arg.name] = buffer.tensor.cpu()
        else:
            assert buffer.untouched(), f"{op.name}: {implementation} changed its argument '{arg.name}'"
    return written


def largest(t: torch.Tensor) -> float:
    return float(t.double().abs().nan_to_num(0, 0, 0).max()) if t.numel() else 0.0


def allowed_error(
    op: Op, name: str, dtypes: Mapping[str, torch.dtype], exact: torch.Tensor, f32: torch.Tensor
) -> float:
    """rounding_steps * eps * largest |output|, and the noise of float32 evaluation where the op rounds at all.

    A quantized output is rounded out of float32: this is what it may be off besides (see `half_steps`).
    """
    dtype = torch.float32 if name in op.quantized else dtypes[op.computed_from.get(name, name)]
    if not dtype.is_floating_point or not op.rounding_steps:
        return 0.0
    noise = NOISE * largest(f32.double() - exact.double())
    return op.rounding_steps * torch.finfo(dtype).eps * largest(exact) + noise


def half_steps(exact: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """What rounding to `dtype` may cost each value, half the distance between its neighbors there: truncation costs
    up to twice that."""
    if not dtype.is_floating_point:
        return torch.full_like(exact, 0.5, dtype=torch.float64)
    info = torch.finfo(dtype)
    exponent = torch.frexp(exact.double().abs().clamp(min=info.smallest_normal)).exponent - 1
    return torch.exp2(exponent.double()) * (info.eps / 2)


def error(got: torch.Tensor, exact: torch.Tensor, where: str, free: torch.Tensor | None = None) -> float:
    """Largest |got - exact|, or how far that is beyond `free`; asserts that non-finite values are in their places."""
    got, exact = got.double(), exact.double()
    for test in (torch.isnan, torch.isposinf, torch.isneginf):
        assert torch.equal(test(got), test(exact)), f"{where}: non-finite values differ from the reference's"
    finite = exact.isfinite()
    off = (got - exact).abs() if free is None else ((got - exact).abs() - free).clamp(min=0)
    return largest(off[finite])


def serving(op: Op, call: Call, device: torch.device = CPU) -> list[str]:
    return [name for name, it in op.implementations.items() if it.refuses(device, specs_of(call), call.attrs) is None]


def check(op: Op, call: Call, implementations: Sequence[str], device: torch.device = CPU) -> dict[str, float]:
    """Largest error over allowed error of each implementation on `device`; asserts that none is above 1.

    Torch's own error, on the CPU, is the measure of the others, of torch on another device too: twice that, plus
    rounding. A name may be "native avx2".
    """
    exact, f32 = reference(op, call, exact=True), reference(op, call, exact=False)
    errors: dict[str, float] = {}
    worst: dict[str, float] = {}
    others = [(name, device) for name in implementations if (name, device.type) != ("torch", "cpu")]
    for implementation, where_run in [("torch", CPU), *others]:
        measure = where_run == CPU and implementation == "torch"
        written = run(op, implementation, call, where_run)
        assert written.keys() == exact.keys()
        dtypes = {name: t.dtype for name, t in written.items()}
        for name, got in written.items():
            where = f"{op.name}.{name} by {implementation}"
            allowed = allowed_error(op, name, dtypes, exact[name], f32[name])
            free = half_steps(exact[name], got.dtype) if name in op.quantized else None
            err = error(got, exact[name], where, free)
            own = errors.setdefault(name, err)  # torch's on the CPU, which comes first
            assert err <= allowed, f"{where}: error {err:.3g}, allowed {allowed:.3g}"
            if not measure and free is None:
                rounding = torch.finfo(got.dtype).eps * largest(exact[name]) if got.is_floating_point() else 0.0
                due = 2 * own + rounding
                assert err <= due, f"{where}: error {err:.3g}, torch's own {own:.3g}"
                allowed = min(allowed, due)
            worst[implementation] = max(worst.get(implementation, 0.0), err / allowed if allowed else 0.0)
    return worst
