"""Draws bars, lines and points on labeled axes as SVG."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from html import escape

WIDTH, LABELS, RIGHT, LEGEND = 1040, 260, 190, 390
ROW, BAR = 22, 14
ABOVE, BELOW = 42, 40
"""Pixels for a panel's two title lines and for its axis."""
HEIGHT = 200
COLORS = ("#1f77b4", "#ff7f0e", "#2ca02c", "#d62728", "#9467bd", "#8c564b", "#e377c2", "#7f7f7f", "#17becf")
DASHES = ("", "6 4", "2 3", "8 3 2 3")
Words = Callable[[float], str]
Panel = tuple[str, int]
"""(SVG, height)."""


@dataclass(frozen=True)
class Bar:
    """`low` and `high` are the ends of its whisker; `words` stand after it."""

    label: str
    value: float
    low: float
    high: float
    words: str
    color: str = COLORS[0]


@dataclass(frozen=True)
class Line:
    """`words` label it at the right, in its color and dashes."""

    points: Sequence[tuple[float, float]]
    words: str
    color: str
    dashes: str = ""


@dataclass(frozen=True)
class Point:
    """`low` and `high` are the ends of its whisker along y; `words` stand beside it."""

    x: float
    y: float
    low: float
    high: float
    words: str
    color: str = COLORS[0]


@dataclass(frozen=True)
class Scale:
    """Maps values from `low` to `high` onto pixels from `start` to `end`; values outside are put on the edge."""

    low: float
    high: float
    start: float
    end: float
    logarithmic: bool = False

    def at(self, value: float) -> float:
        low, high, value = self.low, self.high, min(max(value, self.low), self.high)
        if self.logarithmic:
            low, high, value = math.log(low), math.log(high), math.log(value)
        return self.start + (value - low) / (high - low) * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Round numbers, about eight at most."""
        if not self.logarithmic:
            step = _round_up((self.high - self.low) / 6)
            return [i * step for i in range(math.ceil(self.low / step), math.floor(self.high / step) + 1)]
        exponents = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        for digits in ((1, 2, 3, 5, 7), (1, 2, 5), (1, 3), (1,)):
            found = [digit * 10.0**exponent for exponent in exponents for digit in digits]
            found = [tick for tick in found if self.low <= tick <= self.high]
            if len(found) <= 8:
                break
        return found

    @staticmethod
    def around(values: Sequence[float], start: float, end: float) -> Scale:
        """A logarithmic scale with a margin at both ends."""
        return Scale(min(values) / 1.3, max(values) * 1.3, start, end, logarithmic=True)


def _round_up(value: float) -> float:
    """The next larger value of 1, 2, 5, 10, ..."""
    power = 10.0 ** math.floor(math.log10(value))
    return next(digit * power for digit in (1, 2, 5, 10) if digit * power >= value * (1 - 1e-9))


def bars(
    title: str, below: str, rows: Sequence[Bar], axis: str, words: Words, *, logarithmic: bool = False, mark: float = 0
) -> Panel:
    """Horizontal bars, with a line at `mark`. A whisker that extends beyond the axis ends in an arrowhead."""
    left, right, top, bottom = LABELS, WIDTH - RIGHT, ABOVE, ABOVE + len(rows) * ROW
    values = [bar.value for bar in rows]
    scale = Scale.around(values, left, right) if logarithmic else Scale(0, 1.2 * max([*values, mark]), left, right)
    parts = [*_titles(title, below), *_across(scale, scale.ticks(), words, top, bottom, axis)]
    for i, bar in enumerate(rows):
        y = top + i * ROW + (ROW - BAR) / 2
        middle = y + BAR / 2
        parts.append(text(left - 8, middle + 4, bar.label, anchor="end"))
        width = max(scale.at(bar.value) - left, 0.5)
        parts.append(f'<rect x="{left}" y="{y:.1f}" width="{width:.1f}" height="{BAR}" fill="{bar.color}"/>')
        if bar.high > bar.low:
            parts.append(_stroke(scale.at(bar.low), middle, scale.at(bar.high), middle, "black", 1.5))
        if bar.high > scale.high:
            head = f"{right - 7},{middle - 4} {right},{middle} {right - 7},{middle + 4}"
            parts.append(f'<polyline points="{head}" fill="none" stroke="black" stroke-width="1.5"/>')
        parts.append(text(max(scale.at(bar.value), scale.at(bar.high)) + 6, middle + 4, bar.words))
    if mark:
        parts.append(_stroke(scale.at(mark), top - 4, scale.at(mark), bottom, "black", 1.5, "4 3"))
    return "".join(parts), bottom + BELOW


def lines(title: str, below: str, series: Sequence[Line], axis: str, words: Words) -> Panel:
    """Both axes are logarithmic, with a tick at each x. The lines' labels are in the order of their last points."""
    left, right, top, bottom = 80, WIDTH - LEGEND, ABOVE, ABOVE + HEIGHT
    points = [point for line in series for point in line.points]
    across = Scale.around([x for x, _ in points], left, right)
    up = Scale.around([y for _, y in points], bottom, top)
    parts = [*_titles(title, below), *_across(across, sorted({x for x, _ in points}), "{:g}".format, top, bottom, axis)]
    for tick in up.ticks():
        y = up.at(tick)
        parts += [_stroke(left, y, right, y, "#dddddd", 1), text(left - 8, y + 4, words(tick), anchor="end")]
    for i, line in enumerate(sorted(series, key=lambda line: -line.points[-1][1])):
        found = [(across.at(x), up.at(y)) for x, y in line.points]
        path = " ".join(f"{x:.1f},{y:.1f}" for x, y in found)
        dashes = f' stroke-dasharray="{line.dashes}"' if line.dashes else ""
        parts.append(f'<polyline points="{path}" fill="none" stroke="{line.color}" stroke-width="2"{dashes}/>')
        parts += [f'<circle cx="{x:.1f}" cy="{y:.1f}" r="3" fill="{line.color}"/>' for x, y in found]
        y = top + 10 + 17 * i
        parts.append(_stroke(right + 14, y, right + 44, y, line.color, 2, line.dashes))
        parts.append(text(right + 50, y + 4, line.words))
    return "".join(parts), max(bottom + BELOW, top + 17 * len(series) + 20)


def points(title: str, below: str, found: Sequence[Point], axis: str, words: Words) -> Panel:
    """The x axis starts at 0 and is labeled by `words`; the y axis covers all whiskers."""
    left, right, top, bottom = 80, WIDTH - RIGHT, ABOVE, ABOVE + HEIGHT
    low, high = min(point.low for point in found), max(point.high for point in found)
    margin = 0.1 * (high - low) or 0.1 * abs(high) or 1.0
    across = Scale(0, 1.05 * max(point.x for point in found), left, right)
    up = Scale(low - margin, high + margin, bottom, top)
    parts = [*_titles(title, below), *_across(across, across.ticks(), words, top, bottom, axis)]
    for tick in up.ticks():
        y = up.at(tick)
        parts += [_stroke(left, y, right, y, "#dddddd", 1), text(left - 8, y + 4, f"{tick:.4g}", anchor="end")]
    for point in found:
        x, y = across.at(point.x), up.at(point.y)
        if point.high > point.low:
            parts.append(_stroke(x, up.at(point.low), x, up.at(point.high), point.color, 1.5))
        parts.append(f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{point.color}"/>')
    places = _apart([(across.at(point.x), up.at(point.y), point.words) for point in found], top, bottom)
    for point, (x, y) in zip(found, places, strict=True):
        parts.append(_stroke(across.at(point.x), up.at(point.y), x - 2, y - 4, point.color, 0.5))
        parts.append(text(x, y, point.words, color=point.color))
    return "".join(parts), bottom + BELOW


def _apart(labels: Sequence[tuple[float, float, str]], top: float, bottom: float) -> list[tuple[float, float]]:
    """Positions of points' labels (x, y): beside them, shifted vertically so that none overlap if there is room."""
    line, letter = 13.0, 6.6
    shifts = sorted((i * line for i in range(-15, 16)), key=abs)
    taken: list[tuple[float, float, float]] = []
    places = []
    for x, y, words in labels:
        left, right = x + 10, x + 10 + letter * len(words)
        rows = [y - 5 + shift for shift in shifts if top <= y - 5 + shift <= bottom - 3] or [y - 5]
        free = (row for row in rows if not any(abs(row - r) < line and left < b and a < right for a, b, r in taken))
        row = next(free, rows[0])
        taken.append((left, right, row))
        places.append((left, row))
    return places


def page(title: str, below: str, panels: Sequence[Panel]) -> str:
    parts, top = [], 66
    for body, height in panels:
        parts.append(f'<g transform="translate(0 {top})">{body}</g>')
        top += height + 24
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" width="{WIDTH}" height="{top}" viewBox="0 0 {WIDTH} {top}" '
        'font-family="sans-serif" font-size="12">'
        f'<rect width="{WIDTH}" height="{top}" fill="white"/>{text(20, 28, title, size=18)}{text(20, 48, below)}'
        f"{''.join(parts)}</svg>\n"
    )


def text(x: float, y: float, words: str, anchor: str = "start", size: int = 12, color: str = "black") -> str:
    return (
        f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" font-size="{size}" fill="{color}">{escape(words)}</text>'
    )


def _titles(title: str, below: str) -> list[str]:
    return [text(20, 14, title, size=15), text(20, 31, below, color="#555555")]


def _across(scale: Scale, ticks: Sequence[float], words: Words, top: float, bottom: float, title: str) -> list[str]:
    """The axis below, with a grid line at each tick, and a label unless it would run into the one before."""
    parts, last = [_stroke(scale.start, bottom, scale.end, bottom, "black", 1)], -math.inf
    for tick in ticks:
        x = scale.at(tick)
        parts.append(_stroke(x, top, x, bottom, "#dddddd", 1))
        if x - last > 30:
            parts.append(text(x, bottom + 15, words(tick), anchor="middle"))
            last = x
    return [*parts, text((scale.start + scale.end) / 2, bottom + 32, title, anchor="middle")]


def _stroke(x1: float, y1: float, x2: float, y2: float, color: str, width: float, dashes: str = "") -> str:
    dashed = f' stroke-dasharray="{dashes}"' if dashes else ""
    ends = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {ends} stroke="{color}" stroke-width="{width}"{dashed}/>'
