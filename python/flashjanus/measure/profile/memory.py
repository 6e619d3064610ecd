"""Shows which tensor uses which bytes of a plan's arena, and from when to when."""

from __future__ import annotations

from typing import Any

from flashjanus.engine.plan import Plan


def peak(plan: Plan) -> tuple[int, str]:
    """The most bytes in use at once, and the first node at which that many are in use."""
    live = [
        sum(life.nbytes for life in plan.lifetimes if life.first <= at <= life.last) for at in range(len(plan.nodes))
    ]
    at = max(range(len(live)), key=live.__getitem__)
    return live[at], plan.nodes[at].label


def arena(plan: Plan) -> dict[str, Any]:
    """Each tensor's bytes, and the nodes between which they are in use."""
    most, node = peak(plan)
    return {
        "arena_bytes": plan.arena_bytes,
        "peak_bytes": most,
        "peak_node": node,
        "tensors": [
            {
                "name": life.name,
                "offset": plan.offsets[life.name],
                "bytes": life.nbytes,
                "first_node": life.first,
                "last_node": life.last,
            }
            for life in plan.lifetimes
        ],
    }
