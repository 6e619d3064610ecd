"""Every implementation of every op, at the sizes and on the values that the model itself meets.

A plan is walked node by node; the first node of each form has its arguments copied as they are, and every
implementation that serves there is timed on the copies: launches in one graph, the model's weights and states (keys and
values among them) in as many copies as it takes to have left the L2 when their turn comes again. Activations, which the
kernel before has just written, are not rotated.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping
from typing import Any

import torch
from flashjanus.engine.ops import Implementation, Op, get_op
from flashjanus.engine.plan import PlannedNode
from flashjanus.engine.runtime.executor import Executor

from .budget import Found, Notes
from .clock import summary
from .workload import Workload

COLD = 3
"""Sizes of the L2 between two uses of a copy."""
COPIES, COPIED_BYTES = 64, 4 << 30
LONGEST, SHORTEST = 1e-3, 2e-6
"""Seconds: launches in a graph take about the former together; a launch is reckoned with at least the latter."""
WRONG = 0.05
"""Relative difference from torch's result beyond which a kernel computes something else: bf16 rounding is a tenth."""


class Arguments:
    """A call's arguments as they are in a running model, and copies of them."""

    def __init__(self, executor: Executor, node: PlannedNode) -> None:
        self.op, self.node = get_op(node.op), node
        self.inputs = [None if ref is None else copied(executor.tensor(ref)) for ref in node.inputs]
        self.outputs = [copied(executor.tensor(ref)) for ref in node.outputs]
        self.cold = [ref is not None and ref.kind in ("weight", "state") for ref in node.inputs]

    def copies(self, l2: int) -> list[list[torch.Tensor | None]]:
        """Sets of arguments, each with its own weights and states."""
        size = sum(t.nbytes for t, cold in zip(self.inputs, self.cold, strict=True) if t is not None and cold)
        count = max(min(-(-COLD * l2 // size), COPIES, COPIED_BYTES // size), 1) if size else 1
        return [[*self._set(), *self.outputs] for _ in range(count)]

    def _set(self, every: bool = False) -> list[torch.Tensor | None]:
        pairs = zip(self.inputs, self.cold, strict=True)
        return [copied(t) if t is not None and (every or cold) else t for t, cold in pairs]

    def results(self, implementation: Implementation) -> list[torch.Tensor]:
        """What one call writes; an output that it leaves unwritten is NaN."""
        inputs, outputs = self._set(every=True), [copied(t) for t in self.outputs]
        for output in outputs:
            if output.is_floating_point():
                output.fill_(torch.nan)
        implementation.run(*inputs, *outputs, **self.node.attrs)
        mutated = zip(self.op.schema.inputs, inputs, strict=True)
        return [*outputs, *(t for arg, t in mutated if arg.mutated and t is not None)]


def copied(t: torch.Tensor) -> torch.Tensor:
    """The same values in the same order of memory."""
    return torch.empty_strided(t.shape, t.stride(), dtype=t.dtype, device=t.device).copy_(t)


def difference(got: list[torch.Tensor], due: list[torch.Tensor]) -> float:
    """||got - due|| / ||due||, the largest over floating-point results; 1e9 where one is not finite.

    Without such results, the share of integers that differ.
    """
    floats = [(a.double(), b.double()) for a, b in zip(got, due, strict=True) if b.is_floating_point()]
    if floats:
        errors = [float((a - b).norm() / b.norm().clamp(min=1e-30)) for a, b in floats]
        return max(errors) if all(map(math.isfinite, errors)) else 1e9
    unequal = sum(int((a != b).sum()) for a, b in zip(got, due, strict=True))
    return unequal / max(sum(b.numel() for b in due), 1)


def form(node: PlannedNode) -> tuple[Any, ...]:
    """What makes two nodes the same work."""
    inputs = tuple(None if ref is None else (str(ref.spec), ref.strides) for ref in node.inputs)
    outputs = tuple((str(ref.spec), ref.strides) for ref in node.outputs)
    attrs = tuple(sorted((name, str(value)) for name, value in node.attrs.items()))
    return node.op, inputs, outputs, attrs


def run(work: Workload, notes: Notes, failing: Mapping[str, int], ceilings: Mapping[str, float], l2: int) -> None:
    """Fill `notes.rows`, and `notes.data["programs"]` with how often each program meets a form.

    failing: failed tests by "op implementation". ceilings: "flops" and "bytes" a second.
    """
    names: dict[tuple[Any, ...], str] = {}
    programs: dict[str, list[list[Any]]] = {}
    for executor, of in work.ready():
        plan = executor.plan
        counts = Counter(form(node) for node in plan.nodes)
        bucket = ", ".join(f"{k}={v}" for k, v in plan.sizes.items())
        program, chosen = f"{plan.name} [{bucket}] {of}".rstrip(), []
        for node, _ in executor.steps():
            key = form(node)
            if not counts[key]:
                continue
            if key not in names:
                names[key] = f"{len(names)} {node.op}"
                time_form(work, notes, node, executor, names[key], program, failing, ceilings, l2)
            chosen.append([f"{names[key]} {node.implementation.name}", counts.pop(key)])
        programs[program] = chosen
        notes.data["programs"] = programs
    notes.save()


def time_form(
    work: Workload,
    notes: Notes,
    node: PlannedNode,
    executor: Executor,
    name: str,
    program: str,
    failing: Mapping[str, int],
    ceilings: Mapping[str, float],
    l2: int,
) -> None:
    op, specs = get_op(node.op), [None if ref is None else ref.spec for ref in node.inputs]
    given = [f"{arg.name} {spec}" for arg, spec in zip(op.schema.inputs, specs, strict=True) if spec is not None]
    wanted = [it for it in work.setting.implementations(op.name) if f"{name} {it}" not in notes.rows]
    if not wanted:
        return
    arguments = Arguments(executor, node)
    for implementation in wanted:
        about = dict(
            op=op.name,
            implementation=implementation,
            program=program,
            node=node.label,
            sizes=", ".join(given[:3]),
            flops=node.flops,
            bytes=node.nbytes,
            chosen=implementation == node.implementation.name,
        )

        def one(implementation: str = implementation) -> Found:
            refused = op.implementations[implementation].refuses(executor.plan.device, specs, node.attrs)
            if refused:
                return {"refused": refused}
            failures = failing.get(f"{op.name} {implementation}", 0)
            if failures:
                return {"untimed": f"fails {failures} of its tests"}
            return time_one(work, op, arguments, implementation, ceilings, l2)

        notes.measure(f"{name} {implementation}", one, about)


def time_one(
    work: Workload, op: Op, arguments: Arguments, implementation: str, ceilings: Mapping[str, float], l2: int
) -> Found:
    node, chosen = arguments.node, op.implementations[implementation]
    found: Found = {}
    if implementation != "torch":
        found["difference"] = difference(arguments.results(chosen), arguments.results(op.implementations["torch"]))
        if found["difference"] > WRONG:
            return {**found, "untimed": "its result is not torch's at this size"}
    sets = arguments.copies(l2)
    least = max(node.flops / ceilings["flops"], node.nbytes / ceilings["bytes"], SHORTEST)
    calls = max(min(round(LONGEST / least), work.sizes.calls), len(sets))

    def launch(i: int) -> None:
        chosen.run(*sets[i % len(sets)], **node.attrs)

    samples, captured = work.clock.launches(launch, calls, work.sizes.repeats)
    time = summary(samples)
    rates = {"flops": node.flops / time["median_s"], "bytes": node.nbytes / time["median_s"]}
    return {
        **found,
        "time": time,
        "captured": captured,
        "copies": len(sets),
        "tflops": rates["flops"] / 1e12,
        "gbps": rates["bytes"] / 1e9,
        "share": {unit: rate / ceilings[unit] for unit, rate in rates.items()},
    }
