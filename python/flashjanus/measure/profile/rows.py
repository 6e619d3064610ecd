"""The rows of a profile. Each moment of the request is in exactly one row, so the rows add up to its wall time."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from dataclasses import asdict, dataclass
from typing import Any

from flashjanus.engine.plan import Plan, PlannedNode

from .measure import Profile

BETWEEN = {"cpu": "Python between nodes", "cuda": "launching and waiting"}
"""What a program's time outside its nodes is called, by device."""
OUTSIDE = "outside of programs"


@dataclass(frozen=True)
class Row:
    """`calls` of the same thing, taken together. floor: the least seconds for it according to the roofline."""

    program: str
    name: str
    implementation: str
    calls: int
    seconds: float
    flops: int = 0
    nbytes: int = 0
    floor: float = 0.0

    def to_json(self, wall: float) -> dict[str, Any]:
        row = asdict(self)
        row["roofline_seconds"], row["bytes"] = row.pop("floor"), row.pop("nbytes")
        rates = {"share": self.seconds / wall, "flops_per_second": None, "bytes_per_second": None, "roofline": None}
        if self.floor and self.seconds:
            rates["flops_per_second"] = self.flops / self.seconds
            rates["bytes_per_second"] = self.nbytes / self.seconds
            rates["roofline"] = self.floor / self.seconds
        return row | rates


def bucket(plan: Plan) -> str:
    """Program and sizes, for display."""
    return f"{plan.name} [{', '.join(f'{name}={size}' for name, size in plan.sizes.items())}]"


def rows(profile: Profile, by_node: bool = False) -> list[Row]:
    """Rows by program and op, or by program and node. Programs and rows are sorted by time; other time is last."""
    inside = _summed(_inside(profile, by_node))
    outside = _summed(Row(OUTSIDE, gap.name, "", 1, gap.seconds) for gap in profile.median.gaps)
    totals = {row.program: row for row in programs(inside)}
    inside.sort(key=lambda row: (-totals[row.program].seconds, row.program, -row.seconds))
    return inside + sorted(outside, key=lambda row: -row.seconds)


def programs(parts: Iterable[Row]) -> list[Row]:
    """Rows of the same program merged into one, with `calls` as the number of its runs."""
    totals: dict[str, Row] = {}
    for row in parts:
        so_far = totals.get(row.program, Row(row.program, row.program, "", 0, 0.0))
        calls = row.calls if row.name in BETWEEN.values() or row.program == OUTSIDE else 0
        totals[row.program] = Row(
            row.program,
            row.program,
            "",
            so_far.calls + calls,
            so_far.seconds + row.seconds,
            so_far.flops + row.flops,
            so_far.nbytes + row.nbytes,
            so_far.floor + row.floor,
        )
    return list(totals.values())


def _inside(profile: Profile, by_node: bool) -> Iterator[Row]:
    for run in profile.median.runs:
        plan, program = run.plan, bucket(run.plan)

        def floor(nodes: Iterable[PlannedNode], plan: Plan = plan) -> float:
            return sum(profile.floor(plan, node.flops, node.nbytes) for node in nodes)

        if run.replayed:
            name = f"one graph of {len(plan.nodes)} nodes"
            seconds = run.nodes[0].seconds
            yield Row(program, name, "replay", 1, seconds, plan.flops, plan.nbytes, floor(plan.nodes))
        else:
            for node, span in zip(plan.nodes, run.nodes, strict=True):
                name = f"{node.label} ({node.op})" if by_node else node.op
                served = node.implementation.name
                yield Row(program, name, served, 1, span.seconds, node.flops, node.nbytes, floor([node]))
        yield Row(program, BETWEEN[plan.device.type], "", 1, run.between)


def _summed(parts: Iterable[Row]) -> list[Row]:
    sums: dict[tuple[str, str, str], list[Row]] = {}
    for row in parts:
        sums.setdefault((row.program, row.name, row.implementation), []).append(row)
    return [
        Row(
            *key,
            calls=len(same),
            seconds=sum(row.seconds for row in same),
            flops=sum(row.flops for row in same),
            nbytes=sum(row.nbytes for row in same),
            floor=sum(row.floor for row in same),
        )
        for key, same in sums.items()
    ]
