"""Draws a report as one SVG picture: bars of ratios and times, and lines of time against each size that varied."""

from __future__ import annotations

from collections.abc import Sequence

from flashjanus.measure.drawing import COLORS, DASHES, Bar, Line, Panel, bars, lines, page
from flashjanus.measure.timing import Record, beside
from flashjanus.measure.words import seconds, short

from .bench_report import OURS, Report

VARIED = {
    "rows": "images or conversations at once",
    "prompt_tokens": "prompt tokens of an image",
    "chat_tokens": "tokens of a conversation",
    "steps": "Euler steps of an image",
}


def svg(report: Report) -> str:
    model = report.head["model"]
    below = f"{model['model']}, {model['dtype']} on {model['device']}, {report.head['threads']} threads"
    if report.head.get("commit"):
        below += f", commit {report.head['commit'][:10]}"
    panels = _ops(report.records) if report.kind == "ops" else _stages(report.records)
    return page(f"flashjanus bench {report.kind}", below, panels)


def _stages(records: Sequence[Record]) -> list[Panel]:
    """Ratios and times at the first value of every size, then the effect of changing each size."""
    names = list(dict.fromkeys(record.engine for record in records))
    colors = dict(zip(names, COLORS * len(names), strict=False))
    first = {record.case.stage: record.case for record in reversed(records)}
    base = [record for record in records if first[record.case.stage] == record.case]
    sizes = {name: size for record in base for name, size in record.case.sizes}
    at = ", ".join(f"{VARIED.get(name, name)}: {size}" for name, size in sizes.items())
    found, ratios = [], beside(base, OURS)
    if ratios:
        rows = [
            Bar(
                f"{base[i].case.stage}, {base[i].engine}",
                it.value,
                it.low,
                it.high,
                f"{it.value:.2f} [{it.low:.2f}, {it.high:.2f}]",
                colors[base[i].engine],
            )
            for i, it in ratios.items()
        ]
        least = 100 * min(it.confidence for it in ratios.values())
        below = f"Beyond the dashed line {OURS} is faster. Whiskers, brackets: {least:.0f} % confidence"
        title = f"How many times as long as {OURS} the others take"
        found.append(bars(title, below, rows, f"time over that of {OURS}", "{:g}".format, mark=1.0))
    rows = []
    for record in base:
        label, it = f"{record.case.stage}, {record.engine}", record.spread
        rows.append(Bar(label, it.median, it.low, it.high, seconds(it.median), colors[record.engine]))
    axis = "median time, logarithmic; whiskers: quartiles"
    found.append(bars("Time of each stage", at, rows, axis, short, logarithmic=True))
    for size, words in VARIED.items():
        series = _series(records, size, names)
        if series:
            below = (
                "Both axes logarithmic. After the names: time at the smallest and at the largest size, and their ratio"
            )
            found.append(lines(f"Time against {words}", below, series, words, short))
    return found


def _series(records: Sequence[Record], size: str, names: Sequence[str]) -> list[Line]:
    """One line per stage (color) and engine (dashes) that was timed at more than one value of `size`."""
    groups: dict[tuple[str, str, object], list[tuple[float, float]]] = {}
    for record in records:
        if size in dict(record.case.sizes):
            others = tuple(pair for pair in record.case.sizes if pair[0] != size)
            key = record.case.stage, record.engine, others
            groups.setdefault(key, []).append((float(record.case[size]), record.spread.median))
    grown = {key: sorted(points) for key, points in groups.items() if len(points) > 1}
    stages = list(dict.fromkeys(record.case.stage for record in records))
    several = len({engine for _, engine, _ in grown}) > 1
    found = []
    for (stage, engine, _), points in grown.items():
        least, most = points[0][1], points[-1][1]
        name = f"{stage}, {engine}" if several else stage
        words = f"{name}: {seconds(least)} to {seconds(most)}, x{most / least:.3g}"
        color, dashes = COLORS[stages.index(stage) % len(COLORS)], DASHES[names.index(engine) % len(DASHES)]
        found.append(Line(points, words, color, dashes))
    return found


def _ops(records: Sequence[Record]) -> list[Panel]:
    chosen = {r.case: r for r in records if r.facts.get("chosen")}
    shares, ratios = [], []
    for record in records:
        own = chosen.get(record.case)
        if own is None:
            continue
        name = f"{record.case.stage} in {dict(record.case.sizes).get('program', '')}"
        if record is own:
            share = 100 * float(record.facts["share"])
            words = f"{share:.0f} % of {record.facts['bound']}, {seconds(record.spread.median)}"
            shares.append(Bar(f"{name}, {record.engine}", share, share, share, words))
        else:
            value = record.spread.median / own.spread.median
            words = f"{value:.2f} times {own.engine}"
            ratios.append(Bar(f"{name}, {record.engine}", value, value, value, words, COLORS[1]))
    below = "The copy bandwidth or GEMM rate of this machine, whichever bounds the op; the line: all of it"
    title, number = "What the chosen implementations reach of their ceiling", "{:g}".format
    found = [bars(title, below, shares, "per cent", number, mark=100)]
    if ratios:
        below = "Beyond the dashed line the chosen one is faster"
        title, axis = "How many times as long the other implementations take", "time over that of the chosen one"
        found.append(bars(title, below, ratios, axis, number, mark=1))
    return found
