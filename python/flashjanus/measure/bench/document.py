"""Writes a report as a Markdown table for a document, with verdicts on goals where goals are given."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from flashjanus.errors import InputError
from flashjanus.measure.timing import ENOUGH, Ratio, Record, beside
from flashjanus.measure.words import seconds

from .bench_report import OURS, Report, sizes

_YES, _NO = "yes", "no"


@dataclass(frozen=True)
class Goal:
    """A limit in seconds, or the least ratio of the others' time to ours (`others`)."""

    value: float
    others: bool

    @staticmethod
    def parse(text: str) -> Goal:
        """Parse "2x" or "1.5s". Raises ValueError."""
        found = re.fullmatch(r"(\d{1,6}(?:\.\d{1,6})?)(x|s)", text)
        if found is None or float(found[1]) == 0:
            raise ValueError(
                f"expected 2x (times as fast as the others) or 1.5s (seconds), for example, got {text!r:.40}"
            )
        return Goal(float(found[1]), found[2] == "x")

    def __str__(self) -> str:
        return f"{self.value:g}x" if self.others else seconds(self.value)

    def verdict(self, ours: Record | None, ratio: Ratio | None) -> str:
        """Yes, no, or why the goal cannot be judged. The median decides on seconds, the interval on ratios."""
        if not self.others:
            return "" if ours is None else _YES if ours.spread.median <= self.value else _NO
        if ratio is None:
            return ""
        if ratio.confidence < ENOUGH:
            return "too few rounds"
        return _YES if ratio.low >= self.value else _NO if ratio.high < self.value else "within the noise"


def markdown(report: Report, goals: Mapping[str, Goal]) -> str:
    """One row per stage and size, with our time and those of other implementations; then the source of the numbers.

    Raises InputError if the report is of ops, or lacks the stage of a goal.
    """
    if report.kind == "ops":
        raise InputError("--markdown: expected a report of bench latency or bench throughput, got one of bench ops")
    known = list(dict.fromkeys(record.case.stage for record in report.records))
    for stage in goals:
        if stage not in known:
            raise InputError(f"--goal {stage}: expected one of the report's stages, {', '.join(known)}")
    rows = [["stage", "sizes", OURS, "others", "speedup", "goal", "reached"]]
    rows += _rows(report.records, goals)
    used = [i for i, _ in enumerate(rows[0]) if any(row[i] for row in rows[1:])]
    lines = ["| " + " | ".join(row[i].replace("|", "\\|") for i in used) + " |" for row in rows]
    return "\n".join([lines[0], "|" + "---|" * len(used), *lines[1:], "", _source(report)])


def _rows(records: Sequence[Record], goals: Mapping[str, Goal]) -> list[list[str]]:
    ratios, rows = beside(records, OURS), []
    others = {record.case for record in records if record.engine != OURS}
    own = {record.case: record for record in records if record.engine == OURS}
    for i, record in enumerate(records):
        if record.engine == OURS and record.case in others:
            continue  # shown in the rows of the others
        ours, found, goal = own.get(record.case), ratios.get(i), goals.get(record.case.stage)
        rows.append(
            [
                record.case.stage,
                sizes(record.case),
                seconds(ours.spread.median) if ours else "",
                f"{record.engine} {seconds(record.spread.median)}" if record is not ours else "",
                f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}]" if found else "",
                str(goal) if goal else "",
                goal.verdict(ours, found) if goal else "",
            ]
        )
    return rows


def _source(report: Report) -> str:
    """Command, commit and machine, and how far the intervals can be trusted."""
    head, model = report.head, report.head["model"]
    machine, versions = (head[name] if isinstance(head.get(name), dict) else {} for name in ("machine", "versions"))
    facts = [
        ", ".join(filter(None, [model["model"], model.get("quantization")]))
        + f", {model['dtype']} on {model['device']}",
        f"{machine.get('cpu') or 'unknown CPU'}, {head['threads']} threads",
        f"torch {versions.get('torch', 'unknown')}",
        f"commit {str(head.get('commit') or 'unknown')[:10]}",
        str(head.get("date", ""))[:10],
    ]
    said = "Medians. " + "; ".join(fact for fact in facts if fact) + "."
    confidences = [it.confidence for it in beside(report.records, OURS).values()]
    if confidences:
        said += f" Brackets: {100 * min(confidences):.0f} % confidence."
    return f"{said} `{head.get('command', 'unknown command')}`"
