"""Speed against quality as one SVG picture: a panel for each measure of quality."""

from __future__ import annotations

import itertools
import math
import statistics
from typing import TypeAlias

from flashjanus.measure.drawing import COLORS, Point, page, points
from flashjanus.measure.words import short

from .quality_report import QualityReport, picture_score
from .run import Likeness, Result

Level: TypeAlias = tuple[float, float, float] | None
"""A measured value and the ends of its whisker; None if it was not measured."""


def svg(report: QualityReport) -> str:
    results, model = report.results, report.head["model"]
    panels: list[tuple[str, str, list[Level]]] = [
        (
            "Distance to the converged solution",
            "Over that of the exact mode, over the prompts; lower is better",
            [None if away is None else (away.value, away.low, away.high) for away in report.relative_distances],
        ),
        (
            "Likeness of the latents to those of the exact mode",
            "PSNR in dB, the median over the prompts; higher is better",
            [_decibels(result.likeness) for result in results],
        ),
        (
            "Pictures that are right",
            "Share, with its 95 % interval; higher is better",
            [_right(result) for result in results],
        ),
    ]
    shown = []
    for title, below, levels in panels:
        found = [
            Point(result.record.spread.median, *level, result.mode.name, color)
            for result, level, color in zip(results, levels, itertools.cycle(COLORS), strict=False)
            if level is not None
        ]
        if found:
            shown.append(points(title, below, found, "median time of an image", short))
    below = f"{model['model']}, {model['dtype']} on {model['device']}, {report.head['threads']} threads"
    return page("flashjanus quality", below, shown)


def _decibels(likeness: Likeness | None) -> Level:
    value = math.inf if likeness is None else statistics.median(likeness.latents)
    return (value, value, value) if math.isfinite(value) else None


def _right(result: Result) -> Level:
    score = picture_score(result)
    return None if score is None else (score.value, score.low, score.high)
