"""One call of an op at the sizes and on the values that the model itself uses: copies of its arguments, and a check of
its results by the tests' rule (tests/op_check.py)."""

from __future__ import annotations

import math
from functools import cached_property

import op_check
import torch
from flashjanus.engine.ops import Call, Implementation, get_op
from flashjanus.engine.plan import PlannedNode
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.specs import TensorSpec

from .workload import call_form

Due = tuple[dict[str, torch.Tensor], dict[str, torch.Tensor], dict[str, torch.Tensor]]

COLD = 3
"""How many times the size of the L2 is read between two uses of a copy."""
COPIES, COPIED_BYTES = 64, 4 << 30
ROUNDING = 2.0
"""Large sums round more than those of the ops' cases."""


class Arguments:
    """A call's arguments as they are in a running model, and copies of them."""

    def __init__(self, executor: Executor, node: PlannedNode) -> None:
        self.op, self.node = get_op(node.op), node
        self.inputs = [None if ref is None else copied(executor.tensor(ref)) for ref in node.inputs]
        self.outputs = [copied(executor.tensor(ref)) for ref in node.outputs]
        self.cold = [ref is not None and ref.kind in ("weight", "state") for ref in node.inputs]

    def copies(self, l2: int) -> list[list[torch.Tensor | None]]:
        """Sets of arguments, each with its own weights and states: so many that a set has left the L2 when it is used
        again."""
        size = sum(t.nbytes for t, cold in zip(self.inputs, self.cold, strict=True) if t is not None and cold)
        count = max(min(-(-COLD * l2 // size), COPIES, COPIED_BYTES // size), 1) if size else 1
        return [[*self._set(), *self.outputs] for _ in range(count)]

    def _set(self, every: bool = False) -> list[torch.Tensor | None]:
        pairs = zip(self.inputs, self.cold, strict=True)
        return [copied(t) if t is not None and (every or cold) else t for t, cold in pairs]

    def results(self, implementation: Implementation) -> dict[str, torch.Tensor]:
        """What one call writes, outputs and arguments in place, by name. An output that it leaves unwritten is NaN."""
        inputs, outputs = self._set(every=True), [copied(t) for t in self.outputs]
        for output in outputs:
            if output.is_floating_point():
                output.fill_(torch.nan)
            else:
                output.fill_(torch.iinfo(output.dtype).max)
        implementation.run(*inputs, *outputs, **self.node.attrs)
        named = {arg.name: t for arg, t in zip(self.op.schema.outputs, outputs, strict=True)}
        mutated = zip(self.op.schema.inputs, inputs, strict=True)
        return named | {arg.name: t for arg, t in mutated if arg.mutated and t is not None}

    @cached_property
    def due(self) -> Due:
        """The results of the reference in float64 and in float32, and of torch's implementation. Raises NotChecked."""
        call = Call(tuple(self.inputs), self.node.attrs)
        try:
            exact, f32 = (op_check.reference(self.op, call, exact=it) for it in (True, False))
            return exact, f32, self.results(self.op.implementations["torch"])
        except Exception as error:
            raise NotChecked(f"{type(error).__name__}: {str(error).strip()[:200]}") from error

    def wrong(self, implementation: Implementation) -> tuple[float, str | None]:
        """The largest error of one call divided by the allowed one, and what is wrong with it, or None.

        ROUNDING times the error of the tests is allowed: the op's rounding of the largest value and the noise of
        float32, and twice torch's own error. Choices, such as of a token, must be as good as the reference's. Raises
        NotChecked if there is nothing to compare with.
        """
        if self.op.as_good is not None:
            return 0.0, self.op.as_good(self.inputs, self.results(implementation))
        exact, f32, torchs = self.due
        got = torchs if implementation.name == "torch" else self.results(implementation)
        dtypes = {name: t.dtype for name, t in got.items()}
        worst = 0.0
        for name, value in got.items():
            free = op_check.half_steps(exact[name], value.dtype) if name in self.op.quantized else None

            def error(of: torch.Tensor, name: str = name, free: torch.Tensor | None = free) -> float:
                return op_check.error(of, exact[name], name, free)

            allowed = ROUNDING * op_check.allowed_error(self.op, name, dtypes, exact[name], f32[name])
            try:
                off = error(value)
                # a torch that is wrong itself excuses nobody
                allowed += 0.0 if value is torchs[name] else 2 * min(error(torchs[name]), allowed)
            except AssertionError as differs:
                return math.inf, str(differs)
            if off > allowed:
                largest = op_check.largest(exact[name])
                return worst, f"{name} is off by {off:.3g} of {largest:.3g}, allowed {allowed:.3g}"
            worst = max(worst, off / allowed if allowed else 0.0)
        return worst, None


class NotChecked(Exception):
    """The reference, or torch's implementation, could not run, which says nothing about other implementations."""


def copied(t: torch.Tensor) -> torch.Tensor:
    """The same values in the same order of memory."""
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t)


def specs_of(node: PlannedNode) -> list[TensorSpec | None]:
    return [None if ref is None else ref.spec for ref in node.inputs]


def form(node: PlannedNode) -> str:
    """Two nodes with the same key do the same work: the op and the form of its call."""
    return f"{node.op} {call_form(node.op, specs_of(node), node.attrs)}"


def sizes(node: PlannedNode) -> str:
    """The form of its first arguments, for people."""
    pairs = zip(get_op(node.op).schema.inputs, node.inputs, strict=True)
    return ", ".join([f"{arg.name} {ref.spec}" for arg, ref in pairs if ref is not None][:3])
