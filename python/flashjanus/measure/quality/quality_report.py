"""The results of a run, as a table and as JSON with every sample."""

from __future__ import annotations

import math
import statistics
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from flashjanus.engine.table import columns
from flashjanus.measure.bench.bench_report import ratio
from flashjanus.measure.evaluation.statistics import MEAN_INTERVAL, Interval, Share, mean_of
from flashjanus.measure.timing import Ratio, beside, middle
from flashjanus.measure.words import seconds

from .distance import is_farther, relative
from .modes import EXACT
from .run import Result

HEADINGS = (
    "mode",
    "image",
    "time / exact",
    "distance / exact",
    "latents dB",
    "cosine",
    "images dB",
    "pictures right",
    "answers right",
)
"""image: seconds per image. dB, cosine: median PSNR and median cosine against the exact mode."""


@dataclass(frozen=True)
class QualityReport:
    """`head`: machine, versions, commit, command, model, prompts and how much was measured.

    The first result is the exact mode's.
    """

    head: Mapping[str, Any]
    results: Sequence[Result]

    @property
    def times(self) -> list[Ratio | None]:
        """Each mode's time divided by the exact mode's in the same rounds; None for the exact mode."""
        found = beside([result.record for result in self.results], EXACT)
        return [found.get(i) for i in range(len(self.results))]

    @property
    def relative_distances(self) -> list[Ratio | None]:
        """Each mode's distance to the converged solution divided by the exact mode's, over the prompts."""
        exact = self.results[0].distances
        return [None if r.distances is None or exact is None else relative(r.distances, exact) for r in self.results]

    def beyond(self, bound: float) -> list[str]:
        """The modes whose distance to the converged solution exceeds `bound` times the exact mode's."""
        pairs = zip(self.results, self.relative_distances, strict=True)
        return [result.mode.name for result, found in pairs if found is not None and is_farther(found, bound)]

    def to_json(self) -> dict[str, Any]:
        rows = []
        for result, time, away in zip(self.results, self.times, self.relative_distances, strict=True):
            likeness = result.likeness
            rows.append(
                {
                    "mode": result.mode.name,
                    "options": {**result.mode.loading, **result.mode.sampling},
                    "image_s": {"median": result.record.spread.median, "rounds": result.record.rounds},
                    "time_over_exact": None if time is None else vars(time),
                    "distance": result.distances,
                    "distance_over_exact": None if away is None else vars(away),
                    "likeness": None if likeness is None else {k: _finite(v) for k, v in vars(likeness).items()},
                    "pictures": _shares("categories", result.pictures, picture_score(result), interval=MEAN_INTERVAL),
                    "answers": _shares("topics", result.answers, answer_score(result)),
                }
            )
        return {**self.head, "modes": rows}

    def __str__(self) -> str:
        model = self.head["model"]
        lines = [f"{model['model']}, {model['dtype']} on {model['device']}, {self.head['threads']} threads"]
        rows = [
            list(HEADINGS),
            *(self._row(*of) for of in zip(self.results, self.times, self.relative_distances, strict=True)),
        ]
        kept = [column for column in zip(*rows, strict=True) if any(column[1:])]
        modes = [f"{r.mode.name}: {r.mode}" for r in self.results if str(r.mode)]
        return "\n".join([*lines, "", columns(list(zip(*kept, strict=True))), *([""] if modes else []), *modes])

    def _row(self, result: Result, time: Ratio | None, away: Ratio | None) -> list[str]:
        likeness, shown, answered = result.likeness, picture_score(result), answer_score(result)
        return [
            result.mode.name,
            seconds(result.record.spread.median),
            "" if time is None else ratio(time),
            "" if away is None else ratio(away),
            "" if likeness is None else _median(likeness.latents, ".1f"),
            "" if likeness is None else _median(likeness.cosine, ".5f"),
            "" if likeness is None or likeness.images is None else _median(likeness.images, ".1f"),
            "" if shown is None else f"{shown} of {sum(s.total for s in (result.pictures or {}).values())}",
            "" if answered is None else str(answered),
        ]


def picture_score(result: Result) -> Interval | None:
    """The share of right pictures, averaged over the categories."""
    return None if result.pictures is None else mean_of(list(result.pictures.values()))


def answer_score(result: Result) -> Share | None:
    return None if result.answers is None else Share.pooled(result.answers.values())


def _median(values: Sequence[float], form: str) -> str:
    value = statistics.median(values)
    return "equal" if value == math.inf else f"{value:{form}}"


def _finite(values: Sequence[float] | None) -> dict[str, Any] | None:
    """Their median and all of them; None stands for infinity."""
    if values is None:
        return None
    found = vars(middle(values))
    return {
        **{name: value if math.isfinite(value) else None for name, value in found.items()},
        "samples": [value if math.isfinite(value) else None for value in values],
    }


def _shares(
    groups: str, shares: Mapping[str, Share] | None, overall: Interval | Share | None, **notes: str
) -> dict[str, Any] | None:
    if shares is None or overall is None:
        return None
    return {
        "overall": {**overall.to_json(), **notes},
        "samples": sum(share.total for share in shares.values()),
        groups: {name: share.to_json() for name, share in shares.items()},
    }
