"""Speed against quality as one SVG picture: a panel for each measure of quality."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import TypeAlias

from flashjanus.benchmarking.chart import COLORS, Point, page, points

from .report import QualityReport, picture_score
from .run import Likeness, Result

Level: TypeAlias = tuple[float, float, float] | None
"""A measure and the ends of its whisker; None where it was not taken."""


def svg(report: QualityReport) -> str:
    results = report.results
    panels: dict[str, list[Level]] = {
        "Distance to the converged solution over the exact mode's (lower is better)": [
            None if away is None else (away.value, away.low, away.high) for away in report.relative_distances
        ],
        "PSNR of the latents against the exact mode's, dB": [_decibels(result.likeness) for result in results],
        "Share of pictures that are right (95 %)": [_right(result) for result in results],
    }
    shown = []
    for title, levels in panels.items():
        found = [
            Point(result.mode.name, result.record.spread.median, *level, color)
            for result, level, color in zip(results, levels, itertools.cycle(COLORS), strict=False)
            if level is not None
        ]
        if found:
            shown.append(points(title, "seconds an image (faster to the left)", found))
    model = report.head["model"]
    return page(f"flashjanus quality: {model['model']}, {model['dtype']}", shown)


def _decibels(likeness: Likeness | None) -> Level:
    value = math.inf if likeness is None else statistics.median(likeness.latents)
    return (value, value, value) if math.isfinite(value) else None


def _right(result: Result) -> Level:
    score = picture_score(result)
    return None if score is None else (score.value, score.low, score.high)
