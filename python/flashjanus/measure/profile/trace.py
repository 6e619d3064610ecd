"""Writes a profile in the Trace Event Format of chrome://tracing and ui.perfetto.dev, with a track per program.

Source: "Trace Event Format", Google; complete events ("X"), times in microseconds.
"""

from __future__ import annotations

from typing import Any

from .measure import Profile
from .rows import OUTSIDE, bucket

PID = 1


def trace(profile: Profile) -> dict[str, Any]:
    """The median request: nodes within runs, and the time outside programs on the first track."""
    timeline = profile.median
    tracks = {name: tid for tid, name in enumerate(dict.fromkeys([OUTSIDE, *(bucket(r.plan) for r in timeline.runs)]))}
    events: list[dict[str, Any]] = [
        {"ph": "M", "pid": PID, "tid": tid, "name": "thread_name", "args": {"name": name}}
        for name, tid in tracks.items()
    ]

    def add(track: str, name: str, begin: float, seconds: float, **args: object) -> None:
        start = (begin - timeline.begin) * 1e6
        timed = {"ts": round(start, 3), "dur": round(seconds * 1e6, 3)}
        events.append({"ph": "X", "pid": PID, "tid": tracks[track], "name": name, **timed, "args": args})

    for gap in timeline.gaps:
        add(OUTSIDE, gap.name, gap.begin, gap.seconds)
    for run in timeline.runs:
        plan, track = run.plan, bucket(run.plan)
        add(track, plan.name, run.begin, run.seconds, replayed=run.replayed, flops=plan.flops, bytes=plan.nbytes)
        for node, span in zip(() if run.replayed else plan.nodes, run.nodes, strict=False):
            served = {"op": node.op, "implementation": node.implementation.name}
            add(track, node.label, span.begin, span.seconds, **served, flops=node.flops, bytes=node.nbytes)
    return {"traceEvents": events, "displayTimeUnit": "ms"}
