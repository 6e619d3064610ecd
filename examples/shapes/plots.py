"""Plots a training run's losses and scores, finished or not, from its logs.

    python examples/shapes/plots.py RUN_FOLDER

Every RUN_FOLDER/<stage>.jsonl becomes RUN_FOLDER/<stage>.png: losses, and shares of what was right.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from flashjanus.disk.writing import whole
from flashjanus.measure.evaluation.sets import CATEGORIES
from PIL import Image, ImageDraw, ImageFont
from recipe import Recipe, read_recipe

WIDTH, PANEL, LEFT, RIGHT, TOP, BOTTOM = 900, 300, 70, 190, 40, 50
SCALE = 2
"""Drawn so many times larger and then reduced, which smooths the lines."""
_INK, _GRID, _PAPER = "#202020", "#dddddd", "#ffffff"
_COLORS = (
    "#1f6fb4", "#d9541e", "#2a9d4a", "#8e4bb8", "#c9a200", "#17a2b8",
    "#d6408f", "#7a5c3e", "#6b7280", "#94b72c", "#e08a8a", "#3b3b98",
)  # fmt: skip
_NO_CURVES = ("step", "seconds", "per_second")

Records = list[dict[str, float]]
Curve = list[tuple[float, float]]


def plot_run(folder: Path, recipe: Recipe) -> list[Path]:
    """Draws the plot of every stage that has a log; the files are replaced whole."""
    written = []
    for stage in recipe.stages():
        records = read_log(folder / f"{stage.name}.jsonl")
        if records:
            path = folder / f"{stage.name}.png"
            with whole(path) as file:
                plot_stage(stage.name, records, recipe.pictures(stage.name)).save(file, "PNG")
            written.append(path)
    return written


def read_log(path: Path) -> Records:
    """The records by step; of a step that a resumed run repeated, the last. A line cut off by a kill is left out."""
    records: dict[float, dict[str, float]] = {}
    for line in path.read_text(encoding="utf-8").splitlines() if path.is_file() else ():
        try:
            record = json.loads(line)
        except ValueError:
            continue
        records[record["step"]] = record
    return [records[step] for step in sorted(records)]


def plot_stage(title: str, records: Records, pictures: int) -> Image.Image:
    """A panel for each kind of curve over the steps; pictures: how many a step draws or sees."""
    curves: dict[str, Curve] = {}
    for record in records:
        for name, value in record.items():
            drawable = math.isfinite(value) and (value > 0 or _panel_of(name) != "losses")
            if name not in _NO_CURVES and drawable:
                curves.setdefault(name, []).append((record["step"], value))
    panels: dict[str, dict[str, Curve]] = {"losses": {}}
    for name, curve in curves.items():
        panels.setdefault(_panel_of(name), {})[name] = curve
    sheet = Image.new("RGB", (WIDTH * SCALE, len(panels) * PANEL * SCALE), _PAPER)
    for n, (heading, shown) in enumerate(panels.items()):
        axis = _log_axis(shown) if heading == "losses" else _Axis(0.0, 1.0, [k / 5 for k in range(6)], float)
        _Panel(sheet, n * PANEL, records[-1]["step"], pictures, axis).draw(f"{title}: {heading}", shown)
    return sheet.resize((WIDTH, len(panels) * PANEL), Image.Resampling.LANCZOS)


def _panel_of(name: str) -> str:
    if name in (*CATEGORIES, "overall"):
        return "validation pictures drawn right"
    if name == "answers" or name.startswith("answer_"):
        return "validation questions answered right"
    return "shares in training" if name.startswith("_") else "losses"


@dataclass(frozen=True)
class _Axis:
    """place(value) lies between low and high, as the axis is divided."""

    low: float
    high: float
    ticks: Sequence[float]
    place: Callable[[float], float]


def _log_axis(curves: dict[str, Curve]) -> _Axis:
    values = [y for curve in curves.values() for _, y in curve] or [1.0]
    low, high = math.log10(min(values)), math.log10(max(values))
    low, high = math.floor(low * 4) / 4, max(math.ceil(high * 4) / 4, math.floor(low * 4) / 4 + 0.25)
    steps = (1, 2, 5) if high - low < 3 else (1,)
    decades = range(math.floor(low), math.ceil(high) + 1)
    ticks = [step * 10.0**k for k in decades for step in steps]
    return _Axis(low, high, [t for t in ticks if low <= math.log10(t) <= high], math.log10)


class _Panel:
    def __init__(self, sheet: Image.Image, top: int, last: float, pictures: int, axis: _Axis) -> None:
        self.canvas = ImageDraw.Draw(sheet)
        self.font = ImageFont.load_default(11 * SCALE)
        self.top, self.last, self.pictures, self.axis = top, max(last, 1), pictures, axis

    def at(self, step: float, value: float) -> tuple[float, float]:
        across = step / self.last * (WIDTH - LEFT - RIGHT)
        share = (self.axis.place(value) - self.axis.low) / (self.axis.high - self.axis.low)
        share = min(1.0, max(0.0, share))
        return (LEFT + across) * SCALE, (self.top + PANEL - BOTTOM - share * (PANEL - TOP - BOTTOM)) * SCALE

    def text(self, x: float, y: float, words: str, color: str = _INK, anchor: str = "la") -> None:
        self.canvas.text((x, y), words, color, self.font, anchor)

    def draw(self, title: str, curves: dict[str, Curve]) -> None:
        self.text(LEFT * SCALE, (self.top + 12) * SCALE, title)
        left, right, base = LEFT * SCALE, (WIDTH - RIGHT) * SCALE, (self.top + PANEL - BOTTOM) * SCALE
        for tick in self.axis.ticks:
            y = self.at(0, tick)[1]
            self.canvas.line([(left, y), (right, y)], _GRID, SCALE)
            self.text(left - 6 * SCALE, y, f"{tick:g}", anchor="rm")
        for step in _round_steps(self.last):
            x = self.at(step, self.axis.ticks[0] if self.axis.ticks else 1.0)[0]
            self.canvas.line([(x, base), (x, base + 4 * SCALE)], _INK, SCALE)
            self.text(x, base + 6 * SCALE, f"{step:g}", anchor="ma")
            self.text(x, base + 20 * SCALE, _short(step * self.pictures), anchor="ma")
        self.text(right + 24 * SCALE, base + 6 * SCALE, "steps")
        self.text(right + 24 * SCALE, base + 20 * SCALE, "pictures")
        self.canvas.line([(left, base), (right, base)], _INK, SCALE)
        for n, (name, curve) in enumerate(curves.items()):
            color = _COLORS[n % len(_COLORS)]
            points = [self.at(*point) for point in curve]
            self.canvas.line(points, color, 2 * SCALE, joint="curve")
            for x, y in points if len(points) < 30 else points[-1:]:
                self.canvas.ellipse((x - 2 * SCALE, y - 2 * SCALE, x + 2 * SCALE, y + 2 * SCALE), color)
            words = f"{name.removeprefix('_')} {curve[-1][1]:.3g}"
            self.text(right + 10 * SCALE, (self.top + TOP + 16 * n) * SCALE, words, color)


def _round_steps(last: float) -> list[float]:
    """About six round numbers from 0 to `last`."""
    unit = 10.0 ** math.floor(math.log10(last))
    spacing = next(unit * part for part in (0.1, 0.2, 0.5, 1, 2) if last / (unit * part) <= 7)
    return [k * spacing for k in range(int(last / spacing + 1e-9) + 1)]


def _short(count: float) -> str:
    for size, letter in ((1e6, "M"), (1e3, "k")):
        if count >= size:
            return f"{count / size:.3g}{letter}"
    return f"{count:g}"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder: Path = parser.parse_args().folder
    for path in plot_run(folder, read_recipe(folder)):
        print(path)


if __name__ == "__main__":
    main()
