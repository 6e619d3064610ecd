"""Simulates many replicas under many requests by discrete events, to show what a queue and an autoscaler do.

A replica follows its scheduler's law of cost (scheduling/policy.py): all live images share each evaluation, all answers
share each token, and tokens take turns with evaluations. Between two events of a replica the rates are constant, so two
clocks that run at these rates count the work: one counts evaluations, the other tokens. As on Ray Serve, a request goes
to the less busy of two replicas drawn at random, waits in one queue if none has room, and is refused if the queue is
full.
"""

from __future__ import annotations

import heapq
import math
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt

Floats = npt.NDArray[np.float64]
WAITS, RUNS, SERVED, REFUSED, LATE = range(5)
"""The states of a request. Refused: it found the queue full. Late: it ended after its deadline, or still waited
then."""


@dataclass(frozen=True)
class Law:
    """An evaluation of n images takes evaluation + image * n seconds, and a token of n answers token + answer * n.

    share: the share of an evaluation's time that tokens may take after it; at least one token follows each evaluation.
    """

    evaluation: float
    image: float
    token: float
    answer: float
    share: float = 0.25

    def rates(self, images: int, answers: int) -> tuple[float, float]:
        """Evaluations and tokens per second."""
        token = self.token + self.answer * answers
        if not images:
            return 0.0, 1 / token if answers else 0.0
        evaluation = self.evaluation + self.image * images
        if not answers:
            return 1 / evaluation, 0.0
        tokens = max(1, math.ceil(self.share * evaluation / token))
        cycle = evaluation + tokens * token
        return 1 / cycle, tokens / cycle


@dataclass(frozen=True)
class Requests:
    """at: arrival times in seconds, ascending. work: evaluations of an image, or tokens of an answer. is_image: by
    request."""

    at: Floats
    work: Floats
    is_image: npt.NDArray[np.bool_]


@dataclass(frozen=True)
class Fleet:
    """Replicas, and how Serve scales them: by the mean number of requests that run or wait over `look_back` seconds.
    The defaults are those of cluster/arguments.py.

    ongoing: the most requests of a replica; images: how many of them may be live at once. queued: the most requests
    that wait per running replica (each proxy has a bound, and each node has a proxy). startup: seconds from a decision
    until a new replica serves. deadline: seconds from a request's arrival.
    """

    least: int = 1
    most: int = 64
    target: float = 2.0
    downscaling: float = 0.3
    upscale_delay: float = 10.0
    downscale_delay: float = 600.0
    look_back: float = 30.0
    startup: float = 60.0
    ongoing: int = 64
    images: int = 32
    queued: float = 32.0
    deadline: float = 60.0
    tick: float = 1.0


@dataclass(frozen=True)
class Outcome:
    """The outcome of each request, the seconds that it waited for a replica, and the seconds until it ended (NaN if it
    did not end).

    samples: a row per minute: seconds, running and starting replicas, running and waiting requests.
    """

    became: npt.NDArray[np.int8]
    waited: Floats
    took: Floats
    samples: npt.NDArray[np.float64]
    replica_seconds: float


@dataclass(eq=False)
class Replica:
    """A replica's clocks count evaluations and tokens since it began. ends: (clock, request) of live requests, by
    kind."""

    law: Law
    at: float
    clocks: list[float] = field(default_factory=lambda: [0.0, 0.0])
    rates: tuple[float, float] = (0.0, 0.0)
    ends: tuple[list[tuple[float, int]], list[tuple[float, int]]] = field(default_factory=lambda: ([], []))
    waiting: deque[int] = field(default_factory=deque)
    version: int = 0
    leaving: bool = False

    @property
    def ongoing(self) -> int:
        return len(self.ends[0]) + len(self.ends[1]) + len(self.waiting)

    def advance(self, now: float) -> None:
        spent = now - self.at
        self.clocks[0] += spent * self.rates[0]
        self.clocks[1] += spent * self.rates[1]
        self.at = now

    def next(self) -> tuple[float, int]:
        """When the replica's next request ends if nothing else happens, and its kind."""
        self.rates = self.law.rates(len(self.ends[0]), len(self.ends[1]))
        self.version += 1
        found = [
            (self.at + max(0.0, ends[0][0] - self.clocks[kind]) / self.rates[kind], kind)
            for kind, ends in enumerate(self.ends)
            if ends
        ]
        return min(found, default=(math.inf, 0))


class Simulation:
    """A simulation, which can `run` once."""

    def __init__(self, requests: Requests, law: Law, fleet: Fleet, seed: int = 0, first: int | None = None) -> None:
        """first: the number of replicas at the beginning, by default the minimum."""
        self.requests, self.law, self.fleet = requests, law, fleet
        self._random = np.random.default_rng(seed)
        self._draws: list[float] = []
        count = len(requests.at)
        self.became = np.full(count, WAITS, np.int8)
        self.waited, self.took = np.full(count, np.nan), np.full(count, np.nan)
        self.running = [Replica(law, 0.0) for _ in range(fleet.least if first is None else first)]
        self.leaving: list[Replica] = []
        self.starting: list[float] = []
        self.queue: deque[int] = deque()
        self.ends: list[tuple[float, int, int, Replica, int]] = []
        self._count = self._total = 0
        self._seen: deque[int] = deque(maxlen=max(1, round(fleet.look_back / fleet.tick)))
        self._above = self._below = 0.0
        self._target = len(self.running)
        self._replica_seconds = 0.0
        self._samples: list[tuple[float, ...]] = []

    def run(self) -> Outcome:
        at, work, is_image = (column.tolist() for column in vars(self.requests).values())
        self._work, self._kind = work, [0 if image else 1 for image in is_image]
        self._arrived = at
        request, tick = 0, self.fleet.tick
        while request < len(at) or self._total or self.queue:
            arrives = at[request] if request < len(at) else math.inf
            ends = self.ends[0][0] if self.ends else math.inf
            if tick <= arrives and tick <= ends:
                self._scale(tick)
                tick += self.fleet.tick
            elif ends <= arrives:
                self._end()
            else:
                self._arrive(request, arrives)
                request += 1
        return Outcome(self.became, self.waited, self.took, np.array(self._samples), self._replica_seconds)

    def _arrive(self, request: int, now: float) -> None:
        replica = self._free()
        if replica is not None:
            self._give(replica, request, now)
        elif len(self.queue) < self.fleet.queued * max(1, len(self.running)):
            self.queue.append(request)
        else:
            self.became[request] = REFUSED

    def _free(self) -> Replica | None:
        """The less busy of two random replicas; if both are full, the least busy of all."""
        running, most = self.running, self.fleet.ongoing
        if not running:
            return None
        one, other = running[self._draw(len(running))], running[self._draw(len(running))]
        least = one if one.ongoing <= other.ongoing else other
        if least.ongoing < most:
            return least
        if self._total >= most * len(running):
            return None
        least = min(running, key=lambda replica: replica.ongoing)
        return least if least.ongoing < most else None

    def _draw(self, below: int) -> int:
        if not self._draws:
            self._draws = self._random.random(4096).tolist()
        return int(self._draws.pop() * below)

    def _give(self, replica: Replica, request: int, now: float) -> None:
        self._total += 1
        self.became[request] = RUNS
        self.waited[request] = now - self._arrived[request]
        replica.advance(now)
        replica.waiting.append(request)
        self._admit(replica)
        self._plan(replica)

    def _admit(self, replica: Replica) -> None:
        """Admit the replica's waiting requests that have room; answers pass images that have none."""
        left: list[int] = []
        while replica.waiting:
            request = replica.waiting.popleft()
            kind = self._kind[request]
            if kind == 0 and len(replica.ends[0]) >= self.fleet.images:
                left.append(request)
                continue
            heapq.heappush(replica.ends[kind], (replica.clocks[kind] + self._work[request], request))
        replica.waiting.extendleft(reversed(left))

    def _plan(self, replica: Replica) -> None:
        end, kind = replica.next()
        if end < math.inf:
            self._count += 1
            heapq.heappush(self.ends, (end, self._count, replica.version, replica, kind))

    def _end(self) -> None:
        now, _, version, replica, kind = heapq.heappop(self.ends)
        if version != replica.version:
            return
        replica.advance(now)
        _, request = heapq.heappop(replica.ends[kind])
        self._total -= 1
        self.took[request] = now - self._arrived[request]
        self.became[request] = SERVED if self.took[request] <= self.fleet.deadline else LATE
        if replica.waiting:
            self._admit(replica)
        self._plan(replica)
        if replica.leaving:
            if not replica.ongoing:
                self.leaving.remove(replica)
            return
        self._fill(now)

    def _fill(self, now: float) -> None:
        """Give waiting requests to replicas that have room; those that have waited too long become late."""
        while self.queue:
            if now - self._arrived[self.queue[0]] > self.fleet.deadline:
                self.became[self.queue.popleft()] = LATE
                continue
            replica = self._free()
            if replica is None:
                return
            self._give(replica, self.queue.popleft(), now)

    def _scale(self, now: float) -> None:
        fleet = self.fleet
        self._replica_seconds += fleet.tick * (len(self.running) + len(self.leaving) + len(self.starting))
        if round(now / fleet.tick) % round(60 / fleet.tick) == 0:
            numbers = (len(self.running), len(self.starting), self._total, len(self.queue))
            self._samples.append((now, *map(float, numbers)))
        ready = [begins for begins in self.starting if begins <= now]
        if ready:
            self.starting = self.starting[len(ready) :]
            self.running += [Replica(self.law, now) for _ in ready]
        self._fill(now)
        self._seen.append(self._total + len(self.queue))
        mean = sum(self._seen) / len(self._seen)
        wanted = min(max(self._wanted(mean), fleet.least), fleet.most)
        self._above = self._above + fleet.tick if wanted > self._target else 0.0
        self._below = self._below + fleet.tick if wanted < self._target else 0.0
        if self._above > fleet.upscale_delay:
            self._more(wanted, now)
        elif self._below > fleet.downscale_delay:
            self._fewer(wanted)

    def _wanted(self, mean: float) -> int:
        """The number of replicas by Serve's default policy; downscaling is the share of the way that it goes at
        once."""
        current = len(self.running)
        desired = mean / self.fleet.target
        if desired >= current:
            return math.ceil(desired)
        scaled = math.ceil(current + self.fleet.downscaling * (desired - current))
        return scaled - (scaled == current and math.ceil(desired) < current)

    def _more(self, wanted: int, now: float) -> None:
        self.starting += [now + self.fleet.startup] * (wanted - self._target)
        self._target, self._above = wanted, 0.0

    def _fewer(self, wanted: int) -> None:
        """Remove replicas: first those that have not begun, then the least busy, which finish their requests."""
        spare, self._target, self._below = self._target - wanted, wanted, 0.0
        cancelled = min(spare, len(self.starting))
        self.starting = self.starting[: len(self.starting) - cancelled]
        for replica in sorted(self.running, key=lambda one: one.ongoing)[: spare - cancelled]:
            self.running.remove(replica)
            replica.leaving = True
            if replica.ongoing:
                self.leaving.append(replica)


def arrivals(rates: Floats, count: int, random: np.random.Generator) -> Floats:
    """Random arrival times of `count` requests, at rates that are constant within each second."""
    total = np.concatenate([[0.0], np.cumsum(rates)])
    times = np.arange(len(total), dtype=np.float64)
    return np.asarray(np.interp(np.sort(random.random(count)) * total[-1], total, times))


def percentiles(values: Floats, which: Sequence[float] = (50, 95, 99)) -> list[float]:
    """Percentiles of the values that are not NaN; empty if there are none."""
    found = values[~np.isnan(values)]
    return [float(one) for one in np.percentile(found, which)] if len(found) else []
