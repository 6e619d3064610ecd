"""Who has which bytes of a plan's arena, from when to when."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from flashjanus.engine.plan import Plan
from flashjanus.engine.plan.memory import Lifetime
from flashjanus.engine.plan.plan import nbytes


@dataclass(frozen=True)
class ArenaTimeline:
    """Lifetimes in nodes of the plan (len(nodes): kept as an output), offsets in bytes by name."""

    plan: Plan
    lifetimes: list[Lifetime]

    @property
    def live(self) -> list[int]:
        """Bytes in use while each node runs."""
        return [
            sum(life.nbytes for life in self.lifetimes if life.first <= at <= life.last)
            for at in range(len(self.plan.nodes))
        ]

    @property
    def peak(self) -> tuple[int, str]:
        """The most bytes in use at once, and the first node at which they are."""
        live = self.live
        at = max(range(len(live)), key=live.__getitem__)
        return live[at], self.plan.nodes[at].label

    def to_json(self) -> dict[str, Any]:
        peak, node = self.peak
        return {
            "arena_bytes": self.plan.arena_bytes,
            "peak_bytes": peak,
            "peak_node": node,
            "tensors": [
                {
                    "name": life.name,
                    "offset": self.plan.offsets[life.name],
                    "bytes": life.nbytes,
                    "first_node": life.first,
                    "last_node": life.last,
                }
                for life in self.lifetimes
            ],
        }


def arena_timeline(plan: Plan) -> ArenaTimeline:
    """From the node that writes a tensor to the last that reads it, or a view of it."""
    sizes, first, last = {}, {}, {}
    for at, node in enumerate(plan.nodes):
        for ref in node.outputs:
            sizes[ref.root] = nbytes(ref.spec)
            first[ref.root] = last[ref.root] = at
        for read in node.inputs:
            if read is not None and read.kind == "node":
                last[read.root] = at
    for ref in plan.outputs.values():
        if ref.kind == "node":
            last[ref.root] = len(plan.nodes)
    return ArenaTimeline(plan, [Lifetime(name, sizes[name], first[name], last[name]) for name in sizes])
