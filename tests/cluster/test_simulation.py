"""The simulation against what is known without one: no request is lost, and two queues whose means have formulas."""

from __future__ import annotations

import math

import numpy as np
import pytest
from flashjanus.cluster.simulation import LATE, REFUSED, SERVED, Fleet, Law, Requests, Simulation, arrivals

LAW = Law(1.12e-3, 4.83e-3, 1.07e-3, 0.035e-3)


def poisson(count: int, rate: float, seed: int) -> np.ndarray:
    return np.cumsum(np.random.default_rng(seed).exponential(1 / rate, count))


@pytest.mark.parametrize("seed", range(3))
def test_every_request_is_served_refused_or_late(seed: int) -> None:
    random = np.random.default_rng(seed)
    at = arrivals(np.array([2.0] * 20 + [60.0] * 20 + [4.0] * 60), 2000, random)
    requests = Requests(at, random.integers(5, 60, 2000).astype(float), random.random(2000) < 0.6)
    fleet = Fleet(most=4, startup=5, downscale_delay=10, ongoing=16, images=8, queued=10, deadline=3)
    out = Simulation(requests, LAW, fleet, seed).run()
    counts = [int((out.became == one).sum()) for one in (SERVED, REFUSED, LATE)]
    assert sum(counts) == 2000
    assert all(counts)
    served = out.became == SERVED
    assert np.all(out.took[served] <= 3)
    assert np.all(out.waited[served] >= 0)
    assert np.all(np.isnan(out.took[out.became == REFUSED]))
    again = Simulation(requests, LAW, fleet, seed).run()
    np.testing.assert_array_equal(out.took, again.took)


def test_a_replica_takes_as_long_as_the_law_says() -> None:
    """Alone, and beside another: one image, then one image and one answer."""
    alone = Requests(np.array([0.0]), np.array([30.0]), np.array([True]))
    assert Simulation(alone, LAW, Fleet()).run().took[0] == pytest.approx(30 * 5.95e-3)
    both = Requests(np.array([0.0, 0.0]), np.array([30.0, 1e4]), np.array([True, False]))
    token, evaluation = 1.105e-3, 5.95e-3
    tokens = math.ceil(0.25 * evaluation / token)
    took = Simulation(both, LAW, Fleet()).run().took
    assert took[0] == pytest.approx(30 * (evaluation + tokens * token))
    assert took[1] == pytest.approx(took[0] + (1e4 - 30 * tokens) * token)


def standard_error(values: np.ndarray, batches: int = 20) -> float:
    """Of the mean of values that depend on their neighbors."""
    means = [part.mean() for part in np.array_split(values, batches)]
    return float(np.std(means, ddof=1) / math.sqrt(batches))


def test_waiting_for_several_servers_is_erlangs() -> None:
    """M/M/c: replicas that have one request at a time."""
    servers, load, count = 4, 3.0, 40_000
    requests = Requests(poisson(count, load, 1), np.random.default_rng(2).exponential(1.0, count), np.full(count, True))
    fleet = Fleet(least=servers, most=servers, ongoing=1, queued=math.inf, deadline=math.inf, tick=60)
    out = Simulation(requests, Law(1.0, 0.0, 1.0, 0.0), fleet).run()
    sums = sum(load**k / math.factorial(k) for k in range(servers))
    all_busy = load**servers / math.factorial(servers) * servers / (servers - load)
    mean = all_busy / (sums + all_busy) / (servers - load)
    assert (out.became == SERVED).all()
    assert out.waited.mean() == pytest.approx(mean, abs=4 * standard_error(out.waited))


def test_time_shared_by_all_is_that_of_processor_sharing() -> None:
    """M/G/1-PS: E[S] / (1 - load) whatever the distribution, here two sizes of work."""
    load, count = 0.7, 40_000
    work = np.where(np.random.default_rng(2).random(count) < 0.9, 0.5, 5.5)
    requests = Requests(poisson(count, load, 1), work, np.full(count, True))
    fleet = Fleet(most=1, ongoing=10**9, images=10**9, deadline=math.inf, tick=60)
    out = Simulation(requests, Law(0.0, 1.0, 1.0, 0.0), fleet).run()
    assert out.took.mean() == pytest.approx(1 / (1 - load), abs=4 * standard_error(out.took))


def test_the_autoscaler_follows_the_load_within_its_bounds() -> None:
    random = np.random.default_rng(0)
    at = arrivals(np.array([1.0] * 300 + [12.0] * 900 + [1.0] * 2400), 15_000, random)
    requests = Requests(at, np.full(15_000, 32.0), np.full(15_000, True))
    out = Simulation(requests, LAW, Fleet(most=8)).run()
    replicas = out.samples[:, 1]
    assert replicas[:4].max() == 1
    assert replicas.max() > 2
    assert replicas.max() <= 8
    assert np.all(np.diff(replicas[20:]) <= 0)
    assert replicas[-1] <= 3
