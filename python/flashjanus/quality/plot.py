"""Speed against quality as one SVG picture: a panel for each measure of quality."""

from __future__ import annotations

import math
import statistics
from collections.abc import Sequence

from flashjanus.benchmarking.chart import Point, page, points

from .report import QualityReport, picture_score

ACROSS = "seconds an image (faster to the left)"


def svg(report: QualityReport) -> str:
    times = [result.record.spread.median for result in report.results]
    names = [result.mode.name for result in report.results]
    panels: list[tuple[str, Sequence[tuple[float, float, float] | None]]] = [
        (
            "Distance to the converged solution over the exact mode's (lower is better)",
            [None if away is None else (away.value, away.low, away.high) for away in report.relative_distances],
        ),
        (
            "PSNR of the latents against the exact mode's, dB",
            [None if r.likeness is None else _level(r.likeness.latents) for r in report.results],
        ),
        (
            "Share of pictures that are right (95 %)",
            [
                None if (score := picture_score(r)) is None else (score.value, score.low, score.high)
                for r in report.results
            ],
        ),
    ]
    shown = []
    for title, values in panels:
        found = [
            Point(name, time, *value)
            for name, time, value in zip(names, times, values, strict=True)
            if value is not None
        ]
        if found:
            shown.append(points(title, ACROSS, found))
    model = report.head["model"]
    return page(f"flashjanus quality: {model['model']}, {model['dtype']}", shown)


def _level(values: Sequence[float]) -> tuple[float, float, float] | None:
    value = statistics.median(values)
    return (value, value, value) if math.isfinite(value) else None
