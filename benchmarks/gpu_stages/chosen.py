"""What the released model's plans choose, at the plans' own shapes and on the model's own values, against float32.

Every program is walked node by node. Before a form of a node runs for the first time, its implementation is called on
copies of its arguments. One that is wrong, raises, hangs or ends the process is avoided from there on, in this walk and
in all later stages; what serves in its place is looked at in the same way.
"""

from __future__ import annotations

from collections.abc import Collection

from flashjanus.engine.ops import Implementation, get_op
from flashjanus.engine.plan import PlannedNode
from flashjanus.engine.runtime.executor import Executor

from .book import Found
from .budget import Notes
from .forms import Arguments, form, in_float32, sizes
from .workload import Avoided, Workload

ROUNDS = 4
"""Times that the plans are made again, without what was found to be wrong in them."""


def failing(found: Found) -> Avoided:
    """What must be avoided after this stage: by op and implementation, why."""
    avoided: Avoided = {}
    for row in found.get("rows", {}).values():
        if "failed" in row and "op" in row:
            avoided.setdefault(row["op"], {}).setdefault(row["implementation"], row["failed"])
    return avoided


def run(work: Workload, notes: Notes, only: Collection[tuple[str, str]] | None = None) -> None:
    """Fill `notes.rows` and `work.avoided`; of `only` these ops and implementations, where given."""
    for op, reasons in failing(notes.data).items():
        work.avoided.setdefault(op, {}).update(reasons)
    with in_float32():
        for _ in range(ROUNDS):
            before = str(work.avoided)
            _walk(work, notes, only)
            if str(work.avoided) == before:
                break
            work.forget()


def _walk(work: Workload, notes: Notes, only: Collection[tuple[str, str]] | None) -> None:
    unfinished = notes.data["unfinished"] = []
    for group in work.programs():
        try:
            for program, executor in group:

                def choose(
                    node: PlannedNode, executor: Executor = executor, program: str = program
                ) -> Implementation | None:
                    return _serving(work, notes, executor, node, program, only)

                executor.walk(choose)
                work.clock.synchronize()
        except notes.errors as error:  # nothing is left that serves, or it runs alone and not after the others
            unfinished.append(f"{type(error).__name__}: {str(error)[:400]}")


def _serving(
    work: Workload,
    notes: Notes,
    executor: Executor,
    node: PlannedNode,
    program: str,
    only: Collection[tuple[str, str]] | None,
) -> Implementation | None:
    """The implementation to run, the plan's own or, where that is to be avoided, the next one; None for the former."""
    op, specs = get_op(node.op), [None if ref is None else ref.spec for ref in node.inputs]
    while True:
        avoided = work.avoided.get(node.op, {})
        chosen = node.implementation
        if chosen.name in avoided:
            chosen, _ = op.choose(executor.plan.device, specs, node.attrs, avoided=avoided)
        name = f"{form(node)} {chosen.name}"
        if only is None or (node.op, chosen.name) in only:
            about = dict(op=node.op, implementation=chosen.name, program=program, node=node.label, sizes=sizes(node))
            notes.measure(name, lambda chosen=chosen: _checked(executor, node, chosen), about)
        failed = notes.rows.get(name, {}).get("failed")
        if failed is None:
            return None if chosen is node.implementation else chosen
        work.avoided.setdefault(node.op, {}).setdefault(chosen.name, failed)


def _checked(executor: Executor, node: PlannedNode, chosen: Implementation) -> Found:
    share, why = Arguments(executor, node).wrong(chosen)
    return {"error": share} if why is None else {"failed": why}
