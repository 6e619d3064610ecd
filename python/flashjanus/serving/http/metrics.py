"""Prometheus metrics: the engine's, read on demand, and those that only the server can measure."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, generate_latest
from prometheus_client.core import CounterMetricFamily, GaugeMetricFamily, InfoMetricFamily, Metric
from prometheus_client.registry import Collector

from flashjanus.errors import UnavailableError
from flashjanus.serving.async_engine import AsyncEngine

SECONDS = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 120, 300, 600)
CLIENT_GONE = 499
"""The status in logs and metrics of a request whose client left before its end."""
UNAVAILABLE = 503
RECENT = 0.1
"""The weight of the latest request in the running mean of durations."""
MOST_PATIENCE = 60
"""The longest delay in seconds that clients are told to wait; for longer ones they choose their own."""


class Engine(Collector):
    """The engine's own counters."""

    def __init__(self, engine: AsyncEngine, ready: Callable[[], bool]) -> None:
        self._engine, self._ready = engine, ready

    def collect(self) -> Iterator[Metric]:
        stats = self._engine.stats()
        with suppress(UnavailableError):  # the model is not loaded yet
            facts = self._engine.facts
            about = {"model": facts.name, "version": facts.version, "device": facts.device, "dtype": facts.dtype}
            yield InfoMetricFamily("flashjanus_model", "what is served", about)
        yield GaugeMetricFamily("flashjanus_ready", "1 while requests are served", value=self._ready())
        yield GaugeMetricFamily("flashjanus_queued_requests", "requests that wait for their turn", value=stats.queued)
        rows = GaugeMetricFamily("flashjanus_live_rows", "rows in progress, by kind", labels=["kind"])
        rows.add_metric(["image"], stats.image_rows)
        rows.add_metric(["answer"], stats.answer_rows)
        yield rows
        turns, prefixes = stats.turns.items(), stats.prefixes.items()
        yield _by_kind("turns", "turns of the engine by kind of work", {kind: count for kind, (count, _) in turns})
        yield _by_kind(
            "turn_seconds", "seconds of the engine's turns by kind of work", {kind: spent for kind, (_, spent) in turns}
        )
        yield CounterMetricFamily("flashjanus_tokens", "tokens of answers", value=stats.tokens)
        yield CounterMetricFamily(
            "flashjanus_images", "images drawn, including candidates of best_of", value=stats.images
        )
        yield _by_kind(
            "prefix_hits", "prefixes found in the cache, by kind", {kind: hits for kind, (hits, _) in prefixes}
        )
        yield _by_kind("prefix_misses", "prefixes computed, by kind", {kind: misses for kind, (_, misses) in prefixes})
        yield GaugeMetricFamily("flashjanus_prefix_bytes", "bytes of cached prefixes", value=stats.prefix_bytes)
        yield CounterMetricFamily("flashjanus_prefix_evictions", "prefixes evicted from the cache", value=stats.evicted)
        yield CounterMetricFamily(
            "flashjanus_engine_restarts", "restarts of the engine's process", value=stats.restarts
        )


def _by_kind(name: str, words: str, values: Mapping[str, float]) -> CounterMetricFamily:
    counter = CounterMetricFamily(f"flashjanus_{name}", words, labels=["kind"])
    for kind, value in values.items():
        counter.add_metric([kind], value)
    return counter


class Meters:
    """The server's own metrics, in their own registry. open: POST requests that have not ended."""

    def __init__(self, engine: AsyncEngine, ready: Callable[[], bool]) -> None:
        self.registry = CollectorRegistry()
        self.registry.register(Engine(engine, ready))
        self.first_token = self._seconds("time_to_first_token", "from a request to its first token")
        self.token = self._seconds("time_per_token", "from a token to the next, the mean of an answer")
        self.first_image = self._seconds("time_to_image", "from a request to its images")
        self.first_partial = self._seconds("time_to_first_partial_image", "from a request to its first partial image")
        self.admission = self._seconds("admission", "from a request's acceptance to the start of its work")
        self._total = self._seconds("request", "from a request to its end", ["path"])
        self._requests = Counter(
            "flashjanus_requests", "requests by path and status", ["path", "status"], registry=self.registry
        )
        self._refusals = Counter("flashjanus_refusals", "requests refused, by code", ["code"], registry=self.registry)
        self._failures = Counter(
            "flashjanus_failures", "requests that failed, by code", ["code"], registry=self.registry
        )
        self._gone = Counter("flashjanus_cancellations", "requests whose client left", registry=self.registry)
        self._paths: set[str] = set()
        self.open = 0
        open_now = Gauge(
            "flashjanus_open_requests", "requests whose reply has not been sent yet", registry=self.registry
        )
        open_now.set_function(lambda: self.open)
        self._usual = 0.0

    def _seconds(self, name: str, words: str, labels: list[str] | None = None) -> Histogram:
        return Histogram(f"flashjanus_{name}_seconds", words, labels or [], buckets=SECONDS, registry=self.registry)

    def known(self, path: str) -> None:
        """Count requests of this path under its name; unknown paths count as "other"."""
        self._paths.add(path)

    def ended(self, path: str, status: int, code: str | None, seconds: float) -> None:
        """Count a finished request. code: the error's code, with which a stream may end even after status 200."""
        name = path if path in self._paths else "other"
        self._requests.labels(name, str(status)).inc()
        if status == CLIENT_GONE:
            self._gone.inc()
        elif 400 <= status < 500 or status == UNAVAILABLE:
            self._refusals.labels(code or str(status)).inc()
        elif code or status >= 500:
            self._failures.labels(code or str(status)).inc()
        else:
            self._total.labels(name).observe(seconds)
            self._usual += RECENT * (seconds - self._usual)

    @property
    def patience(self) -> int:
        """Seconds after which a refused request may be retried: the recent duration of a request."""
        return max(1, min(MOST_PATIENCE, round(self._usual)))

    def text(self) -> bytes:
        """All metrics in Prometheus's text format."""
        return generate_latest(self.registry)
