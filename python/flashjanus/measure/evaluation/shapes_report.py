"""The results of an evaluation on the shapes world, as JSON and as a table."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flashjanus.measure.evaluation.frechet import FrechetReport
from flashjanus.measure.evaluation.statistics import MEAN_INTERVAL, Interval, Share, mean_of

_LABEL = 20


@dataclass(frozen=True)
class DrawReport:
    """By category: the share of right pictures, and how many pictures had each kind of fault."""

    categories: Mapping[str, Share]
    faults: Mapping[str, Mapping[str, int]]
    frechet: FrechetReport

    @property
    def overall(self) -> Interval:
        return mean_of(list(self.categories.values()))

    def to_json(self) -> dict[str, Any]:
        return {
            "overall": {**self.overall.to_json(), "interval": MEAN_INTERVAL},
            "categories": {name: share.to_json() for name, share in self.categories.items()},
            "faults": {name: dict(kinds) for name, kinds in self.faults.items()},
            "frechet": self.frechet.to_json(),
        }


@dataclass(frozen=True)
class GroupedShares:
    """Shares by kind (or topic); overall: all of them pooled."""

    groups: Mapping[str, Share]

    @property
    def overall(self) -> Share:
        return Share.pooled(self.groups.values())

    def to_json(self, name: str) -> dict[str, Any]:
        return {
            "overall": self.overall.to_json(),
            name: {group: share.to_json() for group, share in self.groups.items()},
        }


@dataclass(frozen=True)
class ShapesReport:
    """The results of `evaluate_shapes`; None for what was not requested or could not be measured.

    judge: the pixel analysis applied to ground-truth renders. ceiling: the score of ground truth encoded and decoded
    by the VAE; ceiling_absent says why there is none. options: samples, questions, steps, guidance, seed. seconds:
    by part.
    """

    model: Mapping[str, Any]
    options: Mapping[str, Any]
    judge: GroupedShares
    draw: DrawReport | None = None
    ceiling: GroupedShares | None = None
    ceiling_absent: str | None = None
    answers: GroupedShares | None = None
    seconds: Mapping[str, float] = field(default_factory=dict)

    def to_json(self) -> dict[str, Any]:
        """Numbers, strings, None, and dicts of them."""
        return {
            **self.model,
            "options": dict(self.options),
            "draw": None if self.draw is None else self.draw.to_json(),
            "judge": self.judge.to_json("kinds"),
            "vae_ceiling": None if self.ceiling is None else self.ceiling.to_json("kinds"),
            "vae_ceiling_absent": self.ceiling_absent,
            "answers": None if self.answers is None else self.answers.to_json("topics"),
            "seconds": dict(self.seconds),
        }

    def __str__(self) -> str:
        lines = []
        if self.draw is not None:
            lines += _section("pictures", self.draw.categories, self.draw.overall)
            found = self.draw.frechet
            lines += [
                "",
                f"Frechet distance {found.distance:.3f} [{found.low:.3f}, {found.high:.3f}] over {found.images} "
                f"pictures; between two ground truths {found.floor:.3f}",
            ]
        if self.answers is not None:
            lines += ["", *_section("answers", self.answers.groups, self.answers.overall)]
        lines += ["", *_section("judge on ground truth", {}, self.judge.overall)]
        if self.ceiling is not None:
            lines += ["", *_section("VAE ceiling", self.ceiling.groups, self.ceiling.overall)]
        elif self.ceiling_absent is not None:
            lines += ["", f"VAE ceiling unknown: {self.ceiling_absent}"]
        lines += ["", "shares with 95 % limits; " + ", ".join(f"{k} {v}" for k, v in self.options.items())]
        return "\n".join(lines).strip("\n")


def table(title: str, groups: Mapping[str, Share], overall: Interval | Share) -> str:
    """One line per group, and one for all groups together."""
    return "\n".join(_section(title, groups, overall))


def _section(title: str, groups: Mapping[str, Share], overall: Interval | Share) -> list[str]:
    width = max(_LABEL, *(len(name) for name in (*groups, title)))
    if not groups:
        return [f"{title:<{width}}  {overall}"]
    return [title, *(f"  {name:<{width}}{share}" for name, share in groups.items()), f"  {'overall':<{width}}{overall}"]
