"""A report as one SVG picture: bars of ratios and of times, lines of cost against each size that was varied."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from html import escape

from .report import OURS, Report, seconds
from .timing import Case, Record, beside

WIDTH, LABELS, RIGHT = 960, 330, 110
BAR, GAP, HEAD = 16, 6, 46
PLOT = 260
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#17becf")
VARIED = {
    "rows": "images or conversations at once",
    "prompt_tokens": "tokens of the prompt",
    "chat_tokens": "tokens of the conversation",
    "steps": "Euler steps",
}


@dataclass(frozen=True)
class Bar:
    """`low` and `high`: the ends of its whisker; `words` stand behind it."""

    label: str
    value: float
    low: float
    high: float
    words: str
    color: str = COLORS[0]


def svg(report: Report) -> str:
    panels = _ops(report.records) if report.kind == "ops" else _stages(report.records)
    parts, top = [], 40
    for body, height in panels:
        parts.append(f'<g transform="translate(0 {top})">{body}</g>')
        top += height + 24
    title = f"flashjanus bench {report.kind}: {report.head['model']['model']}, {report.head['model']['dtype']}"
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{top}" fill="white"/>{_text(20, 26, title, size=16)}{"".join(parts)}</svg>\n'
    )


def _stages(records: Sequence[Record]) -> list[tuple[str, int]]:
    found = []
    ratios = beside(records, OURS)
    names = list(dict.fromkeys(record.engine for record in records))
    colors = dict(zip(names, COLORS * len(names), strict=False))
    if ratios:
        rows = [
            Bar(
                f"{records[i].engine}: {_label(records[i].case)}",
                it.value,
                it.low,
                it.high,
                f"{it.value:.2f}",
                colors[records[i].engine],
            )
            for i, it in ratios.items()
        ]
        found.append(bars(f"Time of the others over {OURS}'s (right of the line: {OURS} is faster)", rows, mark=1.0))
    first = {record.case.stage: record.case for record in reversed(records)}
    base = [record for record in records if first[record.case.stage] == record.case]
    rows = [
        Bar(f"{r.engine}: {_label(r.case)}", r.spread.median, r.spread.low, r.spread.high, seconds(r.spread.median))
        for r in base
    ]
    rows = [Bar(b.label, b.value, b.low, b.high, b.words, colors[r.engine]) for b, r in zip(rows, base, strict=True)]
    found.append(bars("Time per stage (whiskers: quartiles)", rows))
    for size, words in VARIED.items():
        series = _series([r for r in records if r.engine == OURS], size)
        if series:
            found.append(lines(f"Time against {words}, {OURS}, over the smallest's", words, series))
    return found


def _series(records: Sequence[Record], size: str) -> dict[str, list[tuple[float, float]]]:
    """By stage, (size, time over that of the smallest), where more than one size was timed."""
    groups: dict[tuple[str, Case], list[tuple[int, float]]] = {}
    for record in records:
        if size in dict(record.case.sizes):
            others = tuple(pair for pair in record.case.sizes if pair[0] != size)
            key = record.case.stage, Case(record.case.stage, others)
            groups.setdefault(key, []).append((record.case[size], record.spread.median))
    return {
        stage: [(x, y / min(points)[1]) for x, y in sorted(points)]
        for (stage, _), points in groups.items()
        if len(points) > 1
    }


def _ops(records: Sequence[Record]) -> list[tuple[str, int]]:
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
            shares.append(Bar(f"{name}: {record.engine}", share, share, share, words))
        else:
            value = record.spread.median / own.spread.median
            bar = Bar(f"{name}: {record.engine} / {own.engine}", value, value, value, f"{value:.2f}", COLORS[1])
            ratios.append(bar)
    found = [bars("Share of the ceiling that bounds it, per cent", shares, mark=100.0)]
    return [*found, bars("Time of the others over the chosen implementation's", ratios, mark=1.0)] if ratios else found


def bars(title: str, rows: Sequence[Bar], mark: float | None = None) -> tuple[str, int]:
    """(SVG, height): horizontal bars from 0, with a line at `mark`."""
    most = max([bar.high for bar in rows] + ([mark] if mark else [])) or 1.0
    parts, bottom = [_text(20, 14, title, size=14)], HEAD + len(rows) * (BAR + GAP)

    def at(value: float) -> float:
        return LABELS + value / most * (WIDTH - LABELS - RIGHT)

    for i, bar in enumerate(rows):
        y = HEAD - 20 + i * (BAR + GAP)
        middle = y + BAR / 2
        parts.append(_text(LABELS - 8, middle + 4, bar.label, anchor="end"))
        width = max(at(bar.value) - LABELS, 0.5)
        parts.append(f'<rect x="{LABELS}" y="{y}" width="{width:.1f}" height="{BAR}" fill="{bar.color}"/>')
        if bar.high > bar.low:
            parts.append(_line(at(bar.low), middle, at(bar.high), middle, "black", 1.5))
        parts.append(_text(max(at(bar.value), at(bar.high)) + 6, middle + 4, bar.words))
    if mark is not None:
        parts.append(_line(at(mark), HEAD - 24, at(mark), bottom - 22, "#444444", 1, dashed=True))
    return "".join(parts), bottom - 10


def lines(title: str, across: str, series: Mapping[str, Sequence[tuple[float, float]]]) -> tuple[str, int]:
    """(SVG, height): a line for each name, both axes from 0."""
    left, right, top, bottom = 70, WIDTH - 200, 36, PLOT - 40
    points = [point for line in series.values() for point in line]
    widest, most = max(x for x, _ in points), max(y for _, y in points)

    def at(x: float, y: float) -> tuple[float, float]:
        return left + x / widest * (right - left), bottom - y / most * (bottom - top)

    parts = [_text(20, 14, title, size=14), _line(left, bottom, right, bottom, "black", 1)]
    for share in (0.25, 0.5, 0.75, 1.0):
        y = at(0, most * share)[1]
        parts += [_line(left, y, right, y, "#dddddd", 1), _text(left - 8, y + 4, f"{most * share:.3g}", anchor="end")]
    for x in sorted({x for x, _ in points}):
        parts.append(_text(at(x, 0)[0], bottom + 16, f"{x:g}", anchor="middle"))
    parts.append(_text((left + right) / 2, bottom + 34, across, anchor="middle"))
    for i, (name, line) in enumerate(series.items()):
        color = COLORS[i % len(COLORS)]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in (at(*point) for point in line))
        parts.append(f'<polyline points="{path}" fill="none" stroke="{color}" stroke-width="2"/>')
        parts.append(_text(right + 12, top + 18 * i + 4, f"{name}: {line[-1][1]:.3g}", color=color))
    return "".join(parts), PLOT


def _label(case: Case) -> str:
    return ", ".join([case.stage, *(f"{name.removesuffix('_tokens')} {size}" for name, size in case.sizes)])


def _text(x: float, y: float, words: str, anchor: str = "start", size: int = 12, color: str = "black") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{color}">{escape(words)}</text>'
    )


def _line(x1: float, y1: float, x2: float, y2: float, color: str, width: float, dashed: bool = False) -> str:
    dashes = ' stroke-dasharray="4 3"' if dashed else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width}"{dashes}/>'
