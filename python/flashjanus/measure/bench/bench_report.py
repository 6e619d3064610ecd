"""A benchmark's results: JSON with everything needed to repeat the run, a table, and a comparison of two reports."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashjanus.disk.reading import read_json, show
from flashjanus.engine.table import columns
from flashjanus.errors import InputError
from flashjanus.measure.timing import Case, Ratio, Record, Spread, beside, unpaired
from flashjanus.measure.words import seconds

from .stages import rates

OURS = "flashjanus"
OP_FACTS = {"nodes", "chosen", "bytes_per_s", "flops_per_s", "share", "bound"}


@dataclass(frozen=True)
class Report:
    """`head`: kind (latency, throughput or ops), machine, versions, commit, command, model, options, ceilings."""

    head: Mapping[str, Any]
    records: Sequence[Record]

    @property
    def kind(self) -> str:
        return str(self.head["kind"])

    def to_json(self) -> dict[str, Any]:
        ratios = {} if self.kind == "ops" else beside(self.records, OURS)
        rows = []
        for i, record in enumerate(self.records):
            spread = record.spread
            rows.append(
                {
                    "stage": record.case.stage,
                    "sizes": dict(record.case.sizes),
                    "engine": record.engine,
                    "median_s": spread.median,
                    "quartiles_s": [spread.low, spread.high],
                    **({"rates": found} if (found := rates(record.case, spread.median)) else {}),
                    **({"ratio": vars(ratios[i])} if i in ratios else {}),
                    **({"facts": record.facts} if record.facts else {}),
                    "rounds_s": record.rounds,
                }
            )
        return {**self.head, "records": rows}

    @staticmethod
    def read(path: str) -> Report:
        """Read a report that `to_json` wrote. Raises InputError."""
        data = read_json(Path(path))
        rows = data.pop("records", None)
        if not isinstance(rows, list) or data.get("kind") not in ("latency", "throughput", "ops"):
            raise InputError(f"{path}: expected what `flashjanus bench` wrote with --json, got other JSON")
        records = [_record(row, f"{path}: records[{i}]") for i, row in enumerate(rows)]
        model = data.get("model")
        if not isinstance(model, dict) or not {"model", "device", "dtype"} <= model.keys() or not data.get("threads"):
            raise InputError(f"{path}: expected model, with device and dtype, and threads, got {show(data)}")
        for i, record in enumerate(records if data["kind"] == "ops" else ()):
            if not OP_FACTS.issubset(record.facts):
                raise InputError(f"{path}: records[{i}]: expected facts {', '.join(sorted(OP_FACTS))}")
        return Report(data, records)

    def __str__(self) -> str:
        lines = [f"{self.head['model']['model']}, {self.head['model']['dtype']} on {self.head['model']['device']}"]
        lines[0] += f", {self.head['threads']} threads"
        if self.head.get("ceilings"):
            found = self.head["ceilings"]
            speeds = ", ".join(f"{name} GEMM {rate / 1e9:.0f} GFLOP/s" for name, rate in found["flops_per_s"].items())
            lines.append(f"ceilings: copy {found['bytes_per_s'] / 1e9:.1f} GB/s, {speeds}")
        rows = _op_rows(self.records) if self.kind == "ops" else _stage_rows(self.records)
        return "\n".join([*lines, "", columns(rows)])


def _record(row: Any, where: str) -> Record:
    fields = row if isinstance(row, dict) else {}
    stage, sizes, engine, rounds = (fields.get(name) for name in ("stage", "sizes", "engine", "rounds_s"))
    known = isinstance(stage, str) and isinstance(engine, str) and isinstance(sizes, dict)
    if not known or not isinstance(rounds, list) or not rounds or not all(map(_samples, rounds)):
        raise InputError(
            f"{where}: expected stage, sizes, engine and rounds_s, lists of seconds above 0, got {show(row)}"
        )
    sized = tuple((str(name), size if isinstance(size, int) else str(size)) for name, size in (sizes or {}).items())
    facts = fields.get("facts")
    return Record(Case(str(stage), sized), str(engine), rounds, facts if isinstance(facts, dict) else {})


def _samples(values: Any) -> bool:
    return (
        isinstance(values, list)
        and bool(values)
        and all(isinstance(v, (int, float)) and not isinstance(v, bool) and 0 < v < math.inf for v in values)
    )


def ratio(found: Ratio) -> str:
    return f"{found.value:.2f} [{found.low:.2f}, {found.high:.2f}] {100 * found.confidence:.0f} %"


def sizes(case: Case) -> str:
    return ", ".join(f"{name} {size}" for name, size in case.sizes)


def _stage_rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    ratios = beside(records, OURS)
    rows: list[tuple[str, ...]] = [("stage", "sizes", "engine", "median", "quartiles", "samples", "rate")]
    rows[0] += (f"times {OURS}",) if ratios else ()
    for i, record in enumerate(records):
        spread = record.spread
        found = rates(record.case, spread.median)
        row: tuple[str, ...] = (
            record.case.stage,
            sizes(record.case),
            record.engine,
            seconds(spread.median),
            f"{seconds(spread.low)} to {seconds(spread.high)}",
            f"{len(record.rounds)} x {len(record.rounds[0])}",
            ", ".join(f"{value:.3g} {unit}" for unit, value in found.items()),
        )
        rows.append(row + ((ratio(ratios[i]) if i in ratios else "",) if ratios else ()))
    return rows


def _op_rows(records: Sequence[Record]) -> list[tuple[str, ...]]:
    rows: list[tuple[str, ...]] = [
        ("op", "program", "nodes", "implementation", "time", "quartiles", "GB/s", "TFLOP/s", "of its ceiling", "of")
    ]
    for record in records:
        facts, sizes, spread = record.facts, dict(record.case.sizes), record.spread
        rows.append(
            (
                record.case.stage,
                str(sizes.get("program", "")),
                str(facts["nodes"]),
                record.engine + ("*" if facts["chosen"] else ""),
                seconds(spread.median),
                f"{seconds(spread.low)} to {seconds(spread.high)}",
                f"{facts['bytes_per_s'] / 1e9:.2f}",
                f"{facts['flops_per_s'] / 1e12:.3f}",
                f"{100 * facts['share']:.0f} % {facts['bound']}",
                str(sizes.get("of", "")),
            )
        )
    return rows


@dataclass(frozen=True)
class Difference:
    """One case on one engine in two reports; `ratio` is the second time over the first."""

    before: Record
    after: Record
    ratio: Ratio
    verdict: str

    def to_json(self) -> dict[str, Any]:
        return {
            "stage": self.before.case.stage,
            "sizes": dict(self.before.case.sizes),
            "engine": self.before.engine,
            "median_s": [self.before.spread.median, self.after.spread.median],
            "ratio": vars(self.ratio),
            "verdict": self.verdict,
        }


def differences(a: Report, b: Report, margin: float) -> list[Difference]:
    """Compare the cases that both reports have. Raises InputError if they have none in common."""
    later = {(record.case, record.engine): record for record in b.records}
    found = []
    for record in a.records:
        other = later.get((record.case, record.engine))
        if other is not None:
            change = unpaired(record.medians, other.medians)
            found.append(Difference(record, other, change, change.verdict(margin)))
    if not found:
        raise InputError(f"nothing to compare: no stage at the same sizes is in both reports ({a.kind}, {b.kind})")
    return found


def difference_table(found: Sequence[Difference]) -> str:
    rows: list[tuple[str, ...]] = [("stage", "sizes", "engine", "A", "B", "B / A", "verdict")]
    for it in found:
        spreads: tuple[Spread, Spread] = it.before.spread, it.after.spread
        times = (seconds(spread.median) for spread in spreads)
        case = it.before.case
        rows.append((case.stage, sizes(case), it.before.engine, *times, ratio(it.ratio), it.verdict))
    return columns(rows)
