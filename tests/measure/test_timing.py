"""Rounds in turns, medians and spread, and intervals of ratios against chances that can be counted by hand."""

from __future__ import annotations

import itertools
import random
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

import pytest
from flashjanus.measure.timing import Case, Ratio, Record, Spread, beside, measure, paired, unpaired
from flashjanus.measure.timing import _mann_whitney as mann_whitney

STEP, TOKEN = Case("step", (("rows", 1),)), Case("token", (("rows", 1),))


@dataclass
class Counter:
    """An engine that takes as long as it is told, on a clock of its own."""

    name: str
    log: list[str]
    cases: Sequence[Case] = (STEP, TOKEN)
    now: list[float] = field(default_factory=lambda: [0.0])

    def round(self, cases: Sequence[Case], repeats: int) -> Iterator[tuple[Case, list[float]]]:
        self.log.append(self.name)
        for case in cases:
            if case in self.cases:
                self.now[0] += 60.0
                yield case, [1.0] * repeats


def test_engines_take_turns_in_alternating_order() -> None:
    log: list[str] = []
    engines = [Counter("a", log), Counter("b", log, (TOKEN,))]
    told: list[str] = []
    records = measure(engines, [STEP, TOKEN], rounds=3, repeats=2, minutes=1e6, done=told.append)
    assert log == ["a", "b", "b", "a", "a", "b"]
    assert [(r.case, r.engine, len(r.rounds)) for r in records] == [(STEP, "a", 3), (TOKEN, "a", 3), (TOKEN, "b", 3)]
    assert records[0].rounds == [[1.0, 1.0]] * 3
    assert told[:3] == ["a: step, rows=1", "a: token, rows=1", "b: token, rows=1"]


@pytest.mark.parametrize(("minutes", "rounds"), [(0, 1), (3.9, 1), (4.1, 2), (100, 5)])
def test_no_round_begins_that_would_end_too_late(minutes: float, rounds: int) -> None:
    engine = Counter("a", [])  # two minutes a round
    records = measure([engine], [STEP, TOKEN], rounds=5, repeats=1, minutes=minutes, clock=lambda: engine.now[0])
    assert [len(r.rounds) for r in records] == [rounds, rounds]


def test_spread_is_the_median_and_the_quartiles() -> None:
    assert Spread.of([5.0, 1.0, 4.0, 2.0, 3.0]) == Spread(3.0, 2.0, 4.0)
    assert Spread.of([7.0]) == Spread(7.0, 7.0, 7.0)


def test_a_record_takes_the_median_of_each_round() -> None:
    record = Record(STEP, "a", [[1.0, 9.0, 2.0], [4.0]])
    assert record.medians == [2.0, 4.0]
    assert record.spread.median == 3.0


@pytest.mark.parametrize(
    ("n", "confidence", "low"),
    [(1, 0.0, 1), (3, 0.75, 1), (5, 0.9375, 1), (6, 0.96875, 1), (8, 1 - 2 / 256, 1), (9, 1 - 2 * 10 / 512, 2)],
)
def test_the_paired_interval_is_that_of_the_sign_test(n: int, confidence: float, low: int) -> None:
    found = paired([1.0] * n, [float(i + 1) for i in range(n)])
    assert found.confidence == pytest.approx(confidence)
    assert (found.low, found.high) == (low, n + 1 - low)
    assert found.value == (n + 1) / 2


def test_pairs_cancel_what_both_engines_share() -> None:
    drift = [1.0, 2.0, 5.0, 3.0, 1.5, 8.0]
    found = paired(drift, [1.2 * d for d in drift])
    assert (found.value, found.low, found.high) == pytest.approx((1.2, 1.2, 1.2))
    assert found.verdict() == "slower"
    assert unpaired(drift, [1.2 * d for d in drift]).verdict() == "within the noise"


@pytest.mark.parametrize(("n", "m"), [(1, 1), (2, 3), (4, 4), (5, 3)])
def test_mann_whitney_counts_every_order(n: int, m: int) -> None:
    counts = [0] * (n * m + 1)
    for first in itertools.combinations(range(n + m), n):
        second = set(range(n + m)) - set(first)
        counts[sum(b < a for a in first for b in second)] += 1
    total = sum(counts)
    assert mann_whitney(n, m) == pytest.approx([sum(counts[: k + 1]) / total for k in range(n * m + 1)])


def test_the_unpaired_interval_holds_as_often_as_it_says() -> None:
    chance, held, n = random.Random(0), 0, 600
    for _ in range(n):
        a = [chance.lognormvariate(0, 0.3) for _ in range(5)]
        b = [1.5 * chance.lognormvariate(0, 0.3) for _ in range(5)]
        found = unpaired(a, b)
        held += found.low <= 1.5 <= found.high
    assert held / n == pytest.approx(unpaired([1.0] * 5, [1.0] * 5).confidence, abs=0.02)


@pytest.mark.parametrize(
    ("factor", "rounds", "margin", "verdict"),
    [
        (1.3, 6, 0.05, "slower"),
        (0.7, 6, 0.05, "faster"),
        (1.01, 6, 0.0, "within the noise"),
        (1.3, 6, 0.5, "within the noise"),
        (1.3, 2, 0.05, "too few rounds"),
    ],
)
def test_verdicts(factor: float, rounds: int, margin: float, verdict: str) -> None:
    a = [1.0 + 0.02 * i for i in range(rounds)]
    assert unpaired(a, [factor * x for x in a]).verdict(margin) == verdict


@pytest.mark.parametrize(
    ("low", "high", "confidence", "verdict"),
    [
        (1.26, 9.0, 0.9, "slower"),
        (1.25, 9.0, 0.9, "within the noise"),
        (0.1, 0.8, 0.9, "within the noise"),  # 1 / 1.25, not 1 - 0.25
        (0.1, 0.79, 0.9, "faster"),
        (1.26, 9.0, 0.8999, "too few rounds"),
    ],
)
def test_a_verdict_takes_the_nearer_limit_beyond_the_margin(
    low: float, high: float, confidence: float, verdict: str
) -> None:
    assert Ratio(1.0, low, high, confidence).verdict(0.25) == verdict


def test_ratios_are_of_the_same_case() -> None:
    records = [Record(STEP, "a", [[2.0]]), Record(STEP, "b", [[3.0]]), Record(TOKEN, "b", [[1.0]])]
    found = beside(records, "a")
    assert list(found) == [1]
    assert found[1].value == 1.5
