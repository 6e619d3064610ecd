"""Intervals against published values and simulation; the Frechet distance against its closed form."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from flashjanus.measure.evaluation.frechet import compare, frechet_distance
from flashjanus.measure.evaluation.statistics import Share, mean_of, shares_by_name


@pytest.mark.parametrize(
    ("correct", "total", "low", "high"),
    [  # Newcombe, 1998, table I, method 3: Wilson's score interval
        (81, 263, 0.2553, 0.3662),
        (15, 148, 0.0624, 0.1605),
        (0, 20, 0.0, 0.1611),
        (1, 29, 0.0061, 0.1718),
    ],
)
def test_wilson_has_the_published_limits(correct: int, total: int, low: float, high: float) -> None:
    share = Share(correct, total)
    assert (share.low, share.high) == pytest.approx((low, high), abs=5e-5)
    mirror = Share(total - correct, total)
    assert (mirror.low, mirror.high) == pytest.approx((1 - high, 1 - low), abs=5e-5)


def test_no_outcomes_say_nothing() -> None:
    share = Share.of([])
    assert (share.value, share.low, share.high, share.total) == (0.0, 0.0, 1.0, 0)
    assert mean_of([]).high == 1.0


def test_the_mean_of_one_share_has_its_limits() -> None:
    share = Share(7, 9)
    mean = mean_of([share])
    assert (mean.value, mean.low, mean.high) == pytest.approx((share.value, share.low, share.high))


def test_the_mean_is_of_shares_not_of_outcomes() -> None:
    assert mean_of([Share(1, 1), Share(0, 99)]).value == 0.5


def test_the_limits_of_a_mean_are_those_of_the_published_formula() -> None:
    """From Newcombe's limits of 81 of 263 and 15 of 148: half the root of the sum of their squared distances."""
    mean = mean_of([Share(81, 263), Share(15, 148)])
    first, second = 81 / 263, 15 / 148
    below = math.hypot(first - 0.2553, second - 0.0624) / 2
    above = math.hypot(0.3662 - first, 0.1605 - second) / 2
    due = ((first + second) / 2, (first + second) / 2 - below, (first + second) / 2 + above)
    assert (mean.value, mean.low, mean.high) == pytest.approx(due, abs=5e-5)
    assert str(mean) == "0.205 [0.172, 0.246]"
    assert str(Share(81, 263)) == "0.308 [0.255, 0.366] 81/263"


def test_pooled_shares_are_one() -> None:
    assert Share.pooled([Share(1, 2), Share(3, 7)]) == Share(4, 9)


def test_the_mean_of_certain_shares_is_not_certain() -> None:
    mean = mean_of([Share(50, 50)] * 6)
    assert mean.value == mean.high == 1.0
    assert 0.95 < mean.low < 0.99


def test_the_interval_of_a_mean_covers_it_as_often_as_it_says() -> None:
    rng = np.random.default_rng(1)
    rates = np.array([0.98, 0.9, 0.85, 0.97, 0.7, 0.6])
    covered = 0
    for _ in range(1000):
        mean = mean_of([Share(int(count), 60) for count in rng.binomial(60, rates)])
        covered += mean.low <= rates.mean() <= mean.high
    assert 0.93 <= covered / 1000 <= 0.98


def test_shares_by_name_keep_their_order() -> None:
    shares = shares_by_name([("b", True), ("a", False), ("b", False)])
    assert list(shares.items()) == [("b", Share(1, 2)), ("a", Share(0, 1))]


def exact_rows(mean: torch.Tensor, covariance: torch.Tensor) -> torch.Tensor:
    """Rows whose mean and (n - 1) covariance are exactly those."""
    rows = torch.randn(64, len(mean), generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    rows -= rows.mean(0)
    own = torch.linalg.cholesky(torch.cov(rows.T))
    return torch.linalg.solve_triangular(own, rows.T, upper=False).T @ torch.linalg.cholesky(covariance).T + mean


def test_frechet_of_gaussians_with_commuting_covariances() -> None:
    """|m1 - m2|^2 + sum (s1 - s2)^2 for standard deviations s along shared axes."""
    turn, _ = torch.linalg.qr(torch.randn(5, 5, generator=torch.Generator().manual_seed(3), dtype=torch.float64))
    first, second = torch.tensor([1.0, 2, 3, 4, 5]).double(), torch.tensor([2.0, 2, 1, 0.5, 7]).double()
    means = torch.zeros(5).double(), torch.arange(5).double()
    a, b = (exact_rows(m, turn @ torch.diag(s**2) @ turn.T) for m, s in zip(means, (first, second), strict=True))
    expected = float(means[1].square().sum() + (first - second).square().sum())
    assert frechet_distance(a, b) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(b, a) == pytest.approx(expected, rel=1e-9)
    assert frechet_distance(a, a) == pytest.approx(0.0, abs=1e-9)


def test_frechet_of_gaussians_in_two_dimensions() -> None:
    """tr sqrt(M) = sqrt(tr M + 2 sqrt(det M)) for a 2 x 2 product of covariances that do not commute."""
    a, b = torch.tensor([[2.0, 0.5], [0.5, 1.0]]).double(), torch.tensor([[1.0, -0.7], [-0.7, 3.0]]).double()
    product = a @ b
    cross = math.sqrt(float(product.trace() + 2 * torch.linalg.det(product).sqrt()))
    expected = float(a.trace() + b.trace()) - 2 * cross
    zero = torch.zeros(2).double()
    assert frechet_distance(exact_rows(zero, a), exact_rows(zero, b)) == pytest.approx(expected, rel=1e-9)


def test_frechet_of_one_feature_and_of_fewer_rows_than_features() -> None:
    assert frechet_distance(torch.tensor([[0.0], [2.0]]), torch.tensor([[10.0], [12.0]])) == pytest.approx(100.0)
    rows = torch.randn(5, 40, generator=torch.Generator().manual_seed(4))
    assert frechet_distance(rows, rows + 1) == pytest.approx(40.0, rel=1e-5)


def test_compare_reports_distance_limits_and_floor() -> None:
    generator = torch.Generator().manual_seed(5)
    truth, other, drawn = (torch.randn(300, 4, generator=generator, dtype=torch.float64) for _ in range(3))
    report = compare(drawn + 1, truth, other)
    assert report.low < report.distance < report.high
    assert report.low < 4.0 < report.high
    assert report.floor == pytest.approx(frechet_distance(truth, other))
    assert report.floor < 0.2
    assert report.images == 300
    assert compare(drawn + 1, truth, other) == report
    rows = torch.Generator().manual_seed(0)
    again = [torch.randint(300, (300,), generator=rows) for _ in range(16)]
    spread = np.std([frechet_distance(drawn[r] + 1, truth[r]) for r in again], ddof=1)
    assert (report.distance - report.low, report.high - report.distance) == pytest.approx(
        (1.96 * spread,) * 2, rel=1e-4
    )
