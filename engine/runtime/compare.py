"""Run two plans of one graph side by side and name the first node that disagrees."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from ..errors import PlanError
from ..ops import get_op
from .executor import Executor


@dataclass(frozen=True)
class Disagreement:
    """The first node whose outputs differ, and the difference ||a - b|| / ||b|| (inf if non-finite values differ)."""

    label: str
    op: str
    implementations: tuple[str, str]
    error: float
    tolerance: float

    def __str__(self) -> str:
        a, b = self.implementations
        return f"{self.label} ({self.op}): {a} and {b} differ by {self.error:.3g}, allowed {self.tolerance:.3g}"


def relative_error(a: torch.Tensor, b: torch.Tensor) -> float:
    """||a - b|| / ||b|| in float32; inf unless both have the same non-finite values at the same places."""
    a, b = a.detach().float().cpu(), b.detach().float().cpu()
    if not all(torch.equal(test(a), test(b)) for test in (torch.isnan, torch.isposinf, torch.isneginf)):
        return float("inf")
    a, b = a.nan_to_num(0, 0, 0), b.nan_to_num(0, 0, 0)
    scale = float(b.norm())
    difference = float((a - b).norm())
    return difference / scale if scale else (0.0 if difference == 0 else float("inf"))


def first_disagreement(a: Executor, b: Executor, tolerance: float) -> Disagreement | None:
    """Run both node by node on `a`'s inputs and states; None if every output agrees within `tolerance`.

    The executors may differ in implementations, device or dtype (then raise `tolerance` accordingly), but they must
    have the same list of nodes. In-place ops are compared through the states that they write.
    """
    labels = [[n.label for n in e.plan.nodes] for e in (a, b)]
    if labels[0] != labels[1]:
        raise PlanError(f"cannot compare plans of different graphs: {a.plan.name} and {b.plan.name}")
    for ours, theirs in ((a.inputs, b.inputs), (a.states, b.states)):
        for name, tensor in ours.items():
            if theirs[name] is tensor:
                raise PlanError(f"'{name}' is shared by both executors; each run needs its own")
            theirs[name].copy_(tensor)
    for (node, left), (other, right) in zip(a.steps(), b.steps(), strict=True):
        arguments = zip(get_op(node.op).schema.inputs, node.inputs, strict=True)
        written = [ref for arg, ref in arguments if arg.mutated and ref is not None]
        pairs = [*zip(left, right, strict=True), *((a.tensor(r), b.tensor(r)) for r in written)]
        for x, y in pairs:
            error = relative_error(x, y)
            if error > tolerance:
                names = (node.implementation.name, other.implementation.name)
                return Disagreement(node.label, node.op, names, error, tolerance)
    return None
