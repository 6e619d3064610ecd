"""A profile as text for a terminal."""

from __future__ import annotations

from flashjanus.engine.table import columns

from .measure import Profile
from .memory import peak
from .rows import OUTSIDE, Row, bucket, programs, rows

HEAD = ("", "by", "calls", "ms", "share", "GFLOP", "MB", "GFLOP/s", "GB/s", "roofline")
KERNELS = 20
"""How many GPU kernels are shown."""


def facts(profile: Profile) -> list[str]:
    """What was measured, and how it compares with the request without the recorder."""
    walls, plain = sorted(profile.walls), sorted(profile.plain)
    middle = plain[(len(plain) - 1) // 2]
    wall = profile.median.wall
    rates = ", ".join(
        f"{rate / 1e9:,.0f} GFLOP/s of GEMM in {str(dtype).removeprefix('torch.')}"
        for dtype, rate in profile.ceilings.rates.items()
    )
    return [
        f"median of {len(walls)} requests: {wall * 1e3:.1f} ms ({walls[0] * 1e3:.1f} to {walls[-1] * 1e3:.1f}); "
        f"without the profiler {middle * 1e3:.1f} ms ({plain[0] * 1e3:.1f} to {plain[-1] * 1e3:.1f}), in turns",
        f"ceilings, measured before: {profile.ceilings.bandwidth / 1e9:,.1f} GB/s of copy, {rates}; "
        "above 100 % of the roofline, data came from caches or was only read",
    ]


def table(profile: Profile, by_node: bool = False) -> str:
    """The median request: every program with its ops (or nodes) by time, then the time outside programs."""
    wall, parts = profile.median.wall, rows(profile, by_node)
    lines: list[tuple[str, ...]] = [HEAD]
    for program in programs(parts):
        lines.append(cells(program, wall))
        own = (row for row in parts if row.program == program.program)
        lines += [("  " + name, *rest) for name, *rest in (cells(row, wall) for row in own)]
    _, _, _, *total = cells(Row("", "", "", 0, sum(row.seconds for row in parts)), wall)
    lines.append(("sum of the rows", "", "", *total))
    return columns(lines, right=range(2, len(HEAD)))


def cells(row: Row, wall: float) -> tuple[str, ...]:
    """One row under HEAD, with rates only if there is work to compute them from."""
    name = (row.name, row.implementation, "" if row.program == row.name == OUTSIDE else str(row.calls))
    time = (f"{row.seconds * 1e3:.3f}", f"{row.seconds / wall:.1%}")
    if not row.floor or not row.seconds:
        return (*name, *time, "", "", "", "", "")
    work = (f"{row.flops / 1e9:.3f}", f"{row.nbytes / 1e6:.2f}")
    rates = (f"{row.flops / row.seconds / 1e9:.2f}", f"{row.nbytes / row.seconds / 1e9:.2f}")
    return (*name, *time, *work, *rates, f"{row.floor / row.seconds:.0%}")


def memory(profile: Profile) -> str:
    """Each program's arena: its bytes, and the node at which most of them are in use."""
    lines: list[tuple[str, ...]] = [("arena", "MB", "in use at most", "unshared", "at node")]
    for plan in {bucket(run.plan): run.plan for run in profile.median.runs}.values():
        most, node = peak(plan)
        sizes = (plan.arena_bytes, most, plan.unpacked_bytes)
        lines.append((bucket(plan), *(f"{size / 1e6:.3f}" for size in sizes), node))
    return columns(lines, right=range(1, len(lines[0])))


def kernels(profile: Profile) -> str:
    """GPU kernels by time, as torch.profiler recorded them in an additional request."""
    lines: list[tuple[str, ...]] = [("kernel", "calls", "ms")]
    lines += [(k.name[:100], str(k.calls), f"{k.seconds * 1e3:.3f}") for k in profile.kernels[:KERNELS]]
    return columns(lines, right=range(1, len(lines[0])))


def report(profile: Profile, by_node: bool = False) -> str:
    parts = ["\n".join(facts(profile)), table(profile, by_node), memory(profile)]
    return "\n\n".join([*parts, kernels(profile)] if profile.kernels else parts)
