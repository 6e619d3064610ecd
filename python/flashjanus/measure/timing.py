"""Times runs in rounds, and computes ratios with intervals that tell differences from noise.

Everything is based on order statistics, with no assumption about the distribution of times and no randomness. A round
is short and its samples resemble each other. The noise is what differs between rounds, so ratios compare their medians.
"""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any, Protocol

CONFIDENCE = 0.95
ENOUGH = 0.9
"""An interval with less confidence than this (four rounds in turns, or fewer) decides nothing."""
Clock = Callable[[], float]


def timed(
    run: Callable[[], object], clock: Clock = time.perf_counter, wait: Callable[[], object] = lambda: None
) -> float:
    """Seconds of one `run`. wait: called to wait for work that the device does asynchronously."""
    wait()
    begun = clock()
    run()
    wait()
    return clock() - begun


@dataclass(frozen=True)
class Case:
    """A stage at given sizes, which each engine times in its own way."""

    stage: str
    sizes: tuple[tuple[str, int | str], ...] = ()

    def __getitem__(self, name: str) -> int:
        return int(dict(self.sizes)[name])

    def __str__(self) -> str:
        return ", ".join([self.stage, *(f"{name}={size}" for name, size in self.sizes)])


@dataclass
class Record:
    """Seconds of one case on one engine, round by round. `facts`: further data to keep with it."""

    case: Case
    engine: str
    rounds: list[list[float]] = field(default_factory=list)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def medians(self) -> list[float]:
        return [statistics.median(samples) for samples in self.rounds]

    @property
    def spread(self) -> Spread:
        return Spread.of([sample for samples in self.rounds for sample in samples])


class Engine(Protocol):
    """Something that can be timed."""

    @property
    def name(self) -> str: ...

    def round(self, cases: Sequence[Case], repeats: int) -> Iterator[tuple[Case, list[float]]]:
        """Seconds of those of `cases` that it can run, `repeats` samples of each or as many as suit the case."""
        ...


@dataclass(frozen=True)
class Spread:
    """Median and quartiles."""

    median: float
    low: float
    high: float

    @staticmethod
    def of(samples: Sequence[float]) -> Spread:
        if len(samples) == 1:
            return Spread(samples[0], samples[0], samples[0])
        low, median, high = statistics.quantiles(samples, n=4, method="inclusive")
        return Spread(median, low, high)


@dataclass(frozen=True)
class Ratio:
    """b / a (or another median), with an interval that holds the true value with `confidence`."""

    value: float
    low: float
    high: float
    confidence: float

    def verdict(self, margin: float = 0.0) -> str:
        """What can be said of b against a, if a ratio within `margin` of 1 counts as no difference."""
        if self.confidence < ENOUGH:
            return "too few rounds"
        if self.low > 1 + margin:
            return "slower"
        return "faster" if self.high < 1 / (1 + margin) else "within the noise"


def measure(
    engines: Sequence[Engine],
    cases: Sequence[Case],
    *,
    rounds: int,
    repeats: int,
    minutes: float,
    clock: Clock = time.perf_counter,
    done: Callable[[str], None] = lambda what: None,
) -> list[Record]:
    """Time all engines in turns, in alternating order: A B, B A, A B, ...

    Except for the first, a round starts only if it would end within `minutes`. `done` is told what was timed.
    """
    records: dict[tuple[Case, str], Record] = {}
    begun = last = clock()
    longest = 0.0
    for turn in range(rounds):
        if last - begun + longest > 60 * minutes:
            break
        for engine in engines if turn % 2 == 0 else reversed(engines):
            for case, samples in engine.round(cases, repeats):
                records.setdefault((case, engine.name), Record(case, engine.name)).rounds.append(samples)
                done(f"{engine.name}: {case}")
        longest, last = max(longest, clock() - last), clock()
    order = [(case, engine.name) for case in cases for engine in engines]
    return [records[key] for key in order if key in records]


def paired(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Median of b_i / a_i over rounds i, in which both were timed in turns; the interval is that of the sign test."""
    return middle([y / x for x, y in zip(a, b, strict=False)])


def middle(values: Sequence[float]) -> Ratio:
    """Their median, with the interval of the sign test."""
    return _between(statistics.median(values), sorted(values), _binomial(len(values)))


def unpaired(a: Sequence[float], b: Sequence[float]) -> Ratio:
    """Median of b_j / a_i over all pairs (the Hodges-Lehmann estimate); the interval is that of Mann and Whitney."""
    ratios = sorted(y / x for x in a for y in b)
    return _between(statistics.median(ratios), ratios, _mann_whitney(len(a), len(b)))


def _between(value: float, ordered: Sequence[float], below: Sequence[float]) -> Ratio:
    """The narrowest [k-th smallest, k-th largest] with confidence of at least CONFIDENCE, else the widest there is.

    below[k]: probability that at most k of `ordered` are below the true value.
    """
    k = max((k for k in range(len(ordered) // 2) if 1 - 2 * below[k] >= CONFIDENCE), default=0)
    return Ratio(value, ordered[k], ordered[len(ordered) - 1 - k], max(0.0, 1 - 2 * below[k]))


def _binomial(n: int) -> list[float]:
    """P(X <= k) for the number of heads X of n fair coins."""
    return [sum(math.comb(n, i) for i in range(k + 1)) / 2**n for k in range(n + 1)]


@cache
def _mann_whitney(n: int, m: int) -> list[float]:
    """P(U <= k): the share of all orders of n and m values in which at most k pairs have the second value first."""
    counts = [[[1] + [0] * (n * m)] * (m + 1)]
    for i in range(1, n + 1):
        row = [counts[0][0]]
        for j in range(1, m + 1):  # the largest value is one of the m, above none, or one of the n, above all j
            one = row[j - 1]
            other = [0] * j + counts[i - 1][j][: n * m + 1 - j]
            row.append([x + y for x, y in zip(one, other, strict=True)])
        counts.append(row)
    total = math.comb(n + m, n)
    return [sum(counts[n][m][: k + 1]) / total for k in range(n * m + 1)]


def beside(records: Sequence[Record], ours: str) -> Mapping[int, Ratio]:
    """By position, the time of other engines' records divided by that of `ours` in the same case and rounds."""
    own = {record.case: record for record in records if record.engine == ours}
    return {
        i: paired(own[record.case].medians, record.medians)
        for i, record in enumerate(records)
        if record.engine != ours and record.case in own
    }
