"""The lessons of the first call for the second: what must be avoided, and which settings were clearly faster."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flashjanus.engine.ops import Tunable, all_ops

from .alternatives import CLEAR, Choice
from .book import Found
from .budget import ENDED
from .chosen import faults_of
from .workload import Faults


def newest(*folders: Path) -> Path | None:
    """The latest results of a first call on a GPU in these folders."""
    found = [file for folder in folders for file in folder.glob("*-call-1*.json")]
    files = [file for file in found if not file.name.startswith("dry-run")]
    return max(files, key=lambda file: file.stat().st_mtime, default=None)


def lessons(call: Found) -> Found:
    """The lessons in a first call's data. calls and whole: what must not serve (see Faults). suspects: ops and
    implementations that were wrong and are checked again, except those that ended their process. tuned: settings by
    "module:name" with their value and the reason. slower: implementations to avoid because another takes less time."""
    stages = call["stages"]
    rows = [row for row in stages.get("alternatives", {}).get("rows", {}).values() if "choices" in row and "op" in row]
    found = stages.get("chosen", {})
    wrong = (row for row in found.get("rows", {}).values() if row.get("failed", ENDED) != ENDED)
    suspects = list(map(list, dict.fromkeys((row["op"], row["implementation"]) for row in wrong)))
    faults = faults_of(found)
    told = {"calls": [[*key, why] for key, why in faults.calls.items()]}
    told |= {"whole": [[*key, why] for key, why in faults.whole.items()]}
    return told | {"suspects": suspects, "tuned": dict(_tuned(rows)), "slower": _slower(rows)}


def faults(lessons: Found, again: Found) -> Faults:
    """What must not serve according to these lessons; `again`: the stage that checked the suspects again."""
    rows = again.get("rows", {})
    right = {(row["op"], row["implementation"], name.split()[1]) for name, row in rows.items() if "error" in row}
    told = {(op, name, call): why for op, name, call, why in lessons.get("calls", ())}
    now, found = faults_of(again), Faults(calls={key: why for key, why in told.items() if key not in right})
    for key in ("slower", "whole"):
        found.whole |= {(op, name): why for op, name, why in lessons.get(key, ())}
    return Faults(found.calls | now.calls, found.whole | now.whole)


def ended(lessons: Found) -> Faults:
    """What must not even be checked again."""
    return Faults(whole={(op, name): why for op, name, why in lessons.get("whole", ())})


def put_in_force(tuned: Found) -> None:
    """Apply the settings that `lessons` found to be faster, in this process."""
    for _, tunable, value in settings():
        taught = tuned.get(f"{tunable.module}:{tunable.name}")
        if taught is not None and json.dumps(value) == json.dumps(taught["value"]):
            tunable.set(value)


def settings() -> Iterator[tuple[str, Tunable, Any]]:
    """Every setting of every implementation with each of its values, and the choice's name."""
    for op in all_ops().values():
        for implementation in op.implementations.values():
            for tunable in implementation.tunables:
                for value in tunable.values:
                    yield Choice(implementation, tunable, value).name, tunable, value


def total(rows: list[Found], name: str) -> float | None:
    """Seconds of all calls of a request with this choice, or None if it was not timed in all of these forms."""
    times = [row["choices"].get(name, {}).get("time", {}).get("median_s") for row in rows]
    if not times or None in times:
        return None
    return sum(row["calls"] * time for row, time in zip(rows, times, strict=True))


def _tuned(rows: list[Found]) -> Iterator[tuple[str, Found]]:
    """The best value of each setting over all forms that its implementation serves by the plan's choice."""
    best: dict[str, tuple[float, Found]] = {}
    for name, tunable, value in settings():
        implementation = name.partition(",")[0]
        served = [row for row in rows if name in row["choices"] and row["implementation"] == implementation]
        now, then = total(served, implementation), total(served, name)
        key = f"{tunable.module}:{tunable.name}"
        if now and then and then < (1 - CLEAR) * now and then / now < best.get(key, (1.0, {}))[0]:
            best[key] = then / now, {"value": value, "why": f"{then / now:.2f} of the time of what is in force"}
    yield from ((key, found) for key, (_, found) in best.items())


def _slower(rows: list[Found]) -> list[list[str]]:
    """Choices of the plan that another one clearly beats over all forms that they serve, with the reason. torch's are
    left out, because they serve when nothing else does."""
    found: list[list[str]] = []
    for op, name in dict.fromkeys((row["op"], row["implementation"]) for row in rows):
        served = [row for row in rows if (row["op"], row["implementation"]) == (op, name)]
        now = total(served, name)
        others = {it for row in served for it in row["choices"] if "," not in it and it != name}
        times = {it: took for it in others if (took := total(served, it)) is not None}
        if now and times and name != "torch":
            other = min(times, key=lambda it: times[it])
            if times[other] < (1 - CLEAR) * now:
                found.append([op, name, f"{other} takes {times[other] / now:.2f} of its time"])
    return found
