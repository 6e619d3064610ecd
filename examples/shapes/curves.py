"""Score and Frechet distance of a model against guidance and against the number of steps, on shared noise.

    python examples/shapes/curves.py [--model shapes] [--samples 100] [--dtype bfloat16] OUT

Writes OUT.json and OUT.png. Every point draws the same prompts from the same seeds, so that differences between points
are surer than their intervals say.
"""

from __future__ import annotations

import argparse
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from flashjanus import JanusFlow
from flashjanus.disk.writing import whole, write_json
from flashjanus.measure.evaluation.shapes import evaluate_shapes
from PIL import Image, ImageDraw, ImageFont
from tqdm import tqdm

GUIDANCE = (1.0, 1.5, 2.0, 3.0, 4.0, 8.0)
STEPS = (2, 5, 10, 30, 100)
AT_STEPS, AT_GUIDANCE = 30, 2.0
WIDTH, HEIGHT, LEFT, RIGHT, TOP, BOTTOM, SCALE = 460, 300, 60, 20, 40, 50, 2
INK, GRID, LINE = "#202020", "#dddddd", "#1f6fb4"


@dataclass(frozen=True)
class Point:
    """One setting: score (share right) and Frechet distance, each with its 95 % limits."""

    setting: float
    score: tuple[float, float, float]
    frechet: tuple[float, float, float]


def measure(model: JanusFlow, samples: int, seed: int) -> dict[str, list[Point]]:
    settings = {"guidance": [(AT_STEPS, g) for g in GUIDANCE], "steps": [(n, AT_GUIDANCE) for n in STEPS]}
    measured = {}
    for pair in tqdm(list(dict.fromkeys(settings["guidance"] + settings["steps"])), unit="point"):
        steps, guidance = pair
        report = evaluate_shapes(model, samples=samples, steps=steps, guidance=guidance, seed=seed, only="draw")
        assert report.draw is not None
        score, frechet = report.draw.overall, report.draw.frechet
        measured[pair] = (score.value, score.low, score.high), (frechet.distance, frechet.low, frechet.high)
    return {
        name: [Point(pair[name == "guidance"], *measured[pair]) for pair in pairs] for name, pairs in settings.items()
    }


def chart(title: str, values: Sequence[tuple[float, float, float]], settings: Sequence[float]) -> Image.Image:
    """A line through the values with a bar for each one's limits; settings lie evenly, whatever their distance."""
    image = Image.new("RGB", (WIDTH * SCALE, HEIGHT * SCALE), "white")
    canvas, font = ImageDraw.Draw(image), ImageFont.load_default(11 * SCALE)
    low, high = min(v[1] for v in values), max(v[2] for v in values)
    unit = 10.0 ** math.floor(math.log10(max(high - low, 1e-6)))
    unit = next(unit * part for part in (0.1, 0.2, 0.5, 1, 2) if (high - low) / (unit * part) <= 8)
    low, high = math.floor(low / unit) * unit, math.ceil(high / unit) * unit

    def at(index: int, value: float) -> tuple[float, float]:
        across = LEFT + 20 + index / (len(values) - 1) * (WIDTH - LEFT - RIGHT - 40)
        return across * SCALE, (HEIGHT - BOTTOM - (value - low) / (high - low) * (HEIGHT - TOP - BOTTOM)) * SCALE

    for k in range(round((high - low) / unit) + 1):
        y = at(0, low + k * unit)[1]
        canvas.line([(LEFT * SCALE, y), ((WIDTH - RIGHT) * SCALE, y)], GRID, SCALE)
        canvas.text(((LEFT - 6) * SCALE, y), f"{low + k * unit:.4g}", INK, font, "rm")
    for i, (setting, (_, least, most)) in enumerate(zip(settings, values, strict=True)):
        canvas.line([at(i, least), at(i, most)], LINE, SCALE)
        canvas.text((at(i, low)[0], (HEIGHT - BOTTOM + 8) * SCALE), f"{setting:g}", INK, font, "ma")
    points = [at(i, value[0]) for i, value in enumerate(values)]
    canvas.line(points, LINE, 2 * SCALE, joint="curve")
    for x, y in points:
        canvas.ellipse((x - 3 * SCALE, y - 3 * SCALE, x + 3 * SCALE, y + 3 * SCALE), LINE)
    canvas.text((LEFT * SCALE, 14 * SCALE), title, INK, font)
    return image.resize((WIDTH, HEIGHT), Image.Resampling.LANCZOS)


def plot(curves: dict[str, list[Point]]) -> Image.Image:
    sheet = Image.new("RGB", (2 * WIDTH, 2 * HEIGHT), "white")
    for row, (name, points) in enumerate(curves.items()):
        settings = [point.setting for point in points]
        charts = {"pictures right": [p.score for p in points], "Frechet distance": [p.frechet for p in points]}
        for column, (title, values) in enumerate(charts.items()):
            sheet.paste(chart(f"{title} against {name}", values, settings), (column * WIDTH, row * HEIGHT))
    return sheet


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--model", default="shapes")
    parser.add_argument("--samples", type=int, default=100, help="prompts per category")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    model = JanusFlow.from_pretrained(chosen.model, dtype=chosen.dtype)
    curves = measure(model, chosen.samples, chosen.seed)
    out: Path = chosen.out
    options = {"samples": chosen.samples, "seed": chosen.seed, "steps": AT_STEPS, "guidance": AT_GUIDANCE}
    written = {
        name: [dict(setting=p.setting, score=p.score, frechet=p.frechet) for p in points]
        for name, points in curves.items()
    }
    write_json(out.with_suffix(".json"), options | written)
    with whole(out.with_suffix(".png")) as file:
        plot(curves).save(file, "PNG")


if __name__ == "__main__":
    main()
