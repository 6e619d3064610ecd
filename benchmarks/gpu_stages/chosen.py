"""Compares what the released model's plans choose, at the plans' own shapes and on the model's own values, with
float32.

Every program is walked node by node. Before a form of a node runs for the first time, its implementation is called on
copies of its arguments. An implementation that is wrong or raises no longer serves such calls, in this walk and in all
later stages; one that hangs or ends the process serves no calls at all. Its replacement is checked in the same way. If
nothing right is left, the plan keeps its choice, and the page says that it is wrong.
"""

from __future__ import annotations

import time
from collections.abc import Collection
from contextlib import suppress

import torch
from flashjanus.engine.errors import PlanError
from flashjanus.engine.ops import Avoided, Implementation, Op, get_op
from flashjanus.engine.plan import PlannedNode
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.runtime.isolation import EXACT_GPU_CONVOLUTIONS

from .book import Found
from .budget import ENDED, Notes
from .forms import Arguments, NotChecked, form, sizes, specs_of
from .workload import Faults, Workload, call_form

ROUNDS = 4
"""How often the plans are made again without what was found to be wrong in them."""


class OutOfTime(Exception):
    """The stage has used up its seconds."""


def faults_of(found: Found) -> Faults:
    """What a stage's rows say must be avoided: what was wrong although its successor was right, and what ended a
    process."""
    faults = Faults()
    for name, row in found.get("rows", {}).items():
        if row.get("failed") == ENDED:
            faults.whole[row["op"], row["implementation"]] = ENDED
        elif row.get("successor"):
            faults.calls[row["op"], row["implementation"], name.split()[1]] = row["failed"]
    return faults


def run(work: Workload, notes: Notes, only: Collection[tuple[str, str]] | None = None) -> None:
    """Fill `notes.rows` and `work.faults`, for `only` these ops and implementations if they are given."""
    found = faults_of(notes.data)
    work.faults.calls |= found.calls
    work.faults.whole |= found.whole
    with EXACT_GPU_CONVOLUTIONS:
        for _ in range(ROUNDS):
            before = len(work.faults.calls)
            try:
                _walk(work, notes, only)
            except OutOfTime:
                notes.data["unfinished"].append("out of time: not all programs were walked")
                return
            if len(work.faults.calls) == before:
                return
            work.forget()


def _walk(work: Workload, notes: Notes, only: Collection[tuple[str, str]] | None) -> None:
    unfinished = notes.data["unfinished"] = []
    for group in work.programs():
        try:
            for program, executor in group:

                def choose(
                    node: PlannedNode, executor: Executor = executor, program: str = program
                ) -> Implementation | None:
                    if time.time() > notes.until:
                        raise OutOfTime
                    return _serving(work, notes, executor, node, program, only)

                executor.walk(choose)
                work.clock.synchronize()
        except OutOfTime:
            raise
        except Exception as error:  # it runs alone and not after the others: the next group may run all the same
            if "trying" in notes.data:  # but for a device that is lost to this process
                raise
            unfinished.append(f"{type(error).__name__}: {str(error)[:400]}")


def _serving(
    work: Workload,
    notes: Notes,
    executor: Executor,
    node: PlannedNode,
    program: str,
    only: Collection[tuple[str, str]] | None,
) -> Implementation | None:
    """The implementation to run: the plan's own (None), or the first one after it that is right."""
    op, specs = get_op(node.op), specs_of(node)
    wrong: dict[str, Found] = {}

    def avoided(name: str, implementation: str, *call: object) -> str | None:
        return "wrong" if implementation in wrong else work.faults(name, implementation, specs, node.attrs)

    chosen = node.implementation
    while True:
        name = f"{form(node)} {chosen.name}"
        if only is None or (node.op, chosen.name) in only:
            about = dict(op=node.op, implementation=chosen.name, program=program, node=node.label, sizes=sizes(node))
            notes.measure(name, lambda chosen=chosen: _checked(work, executor, node, chosen), about)
        row = notes.rows.get(name, {})
        if "failed" not in row:
            break
        wrong[chosen.name] = row
        following = _following(op, executor.plan.device, node, avoided)
        if following is None:  # nothing right is left
            if notes.rows[f"{form(node)} {node.implementation.name}"]["failed"] == ENDED:
                raise PlanError(f"{node.label}: {node.op} by {chosen.name} ends the process, and nothing else serves")
            return None
        chosen = following
    for implementation, row in wrong.items():
        row["successor"] = chosen.name
        work.faults.calls[node.op, implementation, call_form(node.op, specs, node.attrs)] = row["failed"]
    return None if chosen is node.implementation else chosen


def _following(op: Op, device: torch.device, node: PlannedNode, avoided: Avoided) -> Implementation | None:
    """The next implementation to serve, although it may yield: plans that are made again then keep the parts of a fused
    op apart."""
    with suppress(PlanError):
        return op.choose(device, specs_of(node), node.attrs, avoided=avoided)[0]
    with suppress(PlanError):
        return op.choose(device, specs_of(node), node.attrs, tuple(op.implementations), avoided)[0]
    return None


def _checked(work: Workload, executor: Executor, node: PlannedNode, chosen: Implementation) -> Found:
    try:
        share, why = Arguments(executor, node).wrong(chosen)
    except NotChecked as error:
        work.clock.synchronize()  # a device that is lost says so here, and not of every row that follows
        return {"skipped": f"not checked, the reference or torch fails: {error}"}
    return {"error": share} if why is None else {"failed": why}
