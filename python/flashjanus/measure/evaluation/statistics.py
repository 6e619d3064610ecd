"""Shares with 95 % confidence intervals, and the mean of several shares with one."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

Z = 1.959963984540054
"""The standard normal distribution's 0.975 quantile."""
MEAN_INTERVAL = "mean of the categories; their Wilson limits combined by square-and-add (Zou and Donner, 2008)"


@dataclass(frozen=True)
class Share:
    """`correct` of `total`, with Wilson's 95% interval low..high. total = 0 says nothing: 0 in 0..1."""

    correct: int
    total: int

    @classmethod
    def of(cls, outcomes: Iterable[bool]) -> Share:
        values = list(outcomes)
        return cls(sum(values), len(values))

    @classmethod
    def pooled(cls, shares: Iterable[Share]) -> Share:
        """All shares pooled into one."""
        parts = list(shares)
        return cls(sum(share.correct for share in parts), sum(share.total for share in parts))

    @property
    def value(self) -> float:
        return self.correct / self.total if self.total else 0.0

    @property
    def low(self) -> float:
        return self._wilson()[0]

    @property
    def high(self) -> float:
        return self._wilson()[1]

    def _wilson(self) -> tuple[float, float]:
        """(p + z^2/2n -+ z sqrt(p(1-p)/n + z^2/4n^2)) / (1 + z^2/n); Wilson, 1927."""
        n, p = self.total, self.value
        if not n:
            return 0.0, 1.0
        center = p + Z * Z / (2 * n)
        half = Z * math.sqrt(p * (1 - p) / n + Z * Z / (4 * n * n))
        scale = 1 + Z * Z / n
        return max(0.0, min(p, (center - half) / scale)), min(1.0, max(p, (center + half) / scale))

    def to_json(self) -> dict[str, Any]:
        return {
            "score": self.value,
            "low": self.low,
            "high": self.high,
            "correct": self.correct,
            "total": self.total,
        }

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}] {self.correct}/{self.total}"


@dataclass(frozen=True)
class Interval:
    """An estimate and its 95 % limits."""

    value: float
    low: float
    high: float

    def to_json(self) -> dict[str, float]:
        return {"score": self.value, "low": self.low, "high": self.high}

    def __str__(self) -> str:
        return f"{self.value:.3f} [{self.low:.3f}, {self.high:.3f}]"


def mean_of(shares: Sequence[Share]) -> Interval:
    """Mean of independent shares: m - sqrt(sum (p - low)^2)/k .. m + sqrt(sum (high - p)^2)/k over k shares.

    Unlike the normal approximation, it does not shrink to a point if every share is 0 or 1. Source: Zou and Donner,
    "Construction of confidence limits about effect measures", Statistics in Medicine, 2008.
    """
    count = len(shares)
    if not count:
        return Interval(0.0, 0.0, 1.0)
    mean = sum(share.value for share in shares) / count
    below = math.sqrt(sum((share.value - share.low) ** 2 for share in shares)) / count
    above = math.sqrt(sum((share.high - share.value) ** 2 for share in shares)) / count
    return Interval(mean, max(0.0, mean - below), min(1.0, mean + above))


def shares_by_name(outcomes: Iterable[tuple[str, bool]]) -> dict[str, Share]:
    """The share of each name, in the order in which the names appear."""
    grouped: dict[str, list[bool]] = {}
    for name, correct in outcomes:
        grouped.setdefault(name, []).append(correct)
    return {name: Share.of(values) for name, values in grouped.items()}
