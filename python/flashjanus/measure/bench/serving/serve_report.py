"""The report of a run against an endpoint: JSON with all samples, tables, and a picture."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from flashjanus.engine.table import columns
from flashjanus.errors import InputError
from flashjanus.measure.drawing import COLORS, DASHES, Bar, Line, Panel, bars, lines, page
from flashjanus.measure.words import seconds, short

from .figures import LATENCIES, QUANTILES, percentile, summary
from .sample import Sample

TAIL = (2, 5, 10, 20, 50, 100, 200, 500, 1000)
"""The curve of a latency is drawn at the times that one request in this many exceeds."""


@dataclass(frozen=True)
class ServeReport:
    """`head`: machine, command, endpoint and load. deadlines: see `is_in_time`."""

    head: Mapping[str, Any]
    samples: Sequence[Sample]
    deadlines: Mapping[str, float]

    @cached_property
    def figures(self) -> dict[str, Any]:
        return summary(self.samples, self.deadlines)

    @property
    def succeeded(self) -> int:
        return int(self.figures["requests"]["succeeded"])

    def to_json(self) -> dict[str, Any]:
        return {**self.head, **self.figures, "samples": [sample.to_json() for sample in self.samples]}

    @staticmethod
    def of_json(data: Mapping[str, Any], where: str) -> ServeReport:
        """Read what `to_json` gave. Raises InputError."""
        rows, goodput = data.get("samples"), data.get("goodput")
        limits = goodput.get("deadlines_s") if isinstance(goodput, dict) else {}
        head = {name: value for name, value in data.items() if name not in ("samples", *summary([], {}))}
        given = limits.items() if isinstance(limits, dict) else ()
        deadlines = {name: limit for name, limit in given if isinstance(limit, float | int)}
        if not isinstance(rows, list) or deadlines != limits or not {"endpoint", "model", "load"} <= head.keys():
            raise InputError(f"{where}: expected what `flashjanus bench serve` wrote with --json, got other JSON")
        samples = []
        for i, row in enumerate(rows):
            try:
                samples.append(Sample.of_json(row))
            except ValueError as error:
                raise InputError(f"{where}: samples[{i}]: {error}") from None
        return ServeReport(head, samples, deadlines)

    def __str__(self) -> str:
        figures, parts = self.figures, [self._about()]
        requests = figures["requests"]
        said = f"{requests['sent']} requests in {seconds(figures['seconds'])}, {requests['failed']} failed, "
        parts.append(f"{said}{figures['most_at_once']} at once at most")
        made = {name.removesuffix("_per_s"): value for name, value in figures["throughput"].items() if value}
        parts.append("; ".join(f"{value:.3g} {name}/s" for name, value in made.items()) or "nothing succeeded")
        if figures["goodput"]:
            parts.append(self._goodput(figures["goodput"]))
        if self._late():
            late = seconds(figures["lag"]["p99"])
            parts.append(f"sent {late} late (p99) by this client, which its latencies include")
        rows = self._rows()
        if len(rows) > 1:
            parts += ["", columns(rows)]
        if figures["errors"]:
            rows = [(f"{it['count']} x", it["kind"], it["error"], it["message"]) for it in figures["errors"]]
            parts += ["", columns([("errors", "kind", "code", "first message"), *rows])]
        return "\n".join(parts)

    def _about(self) -> str:
        return f"{self.head['model']} at {self.head['endpoint']}, {self.head['load']}"

    def _late(self) -> bool:
        """Whether the client itself distorts the times: requests were sent late by over a tenth of their duration."""
        lag, total = self.figures["lag"], self.figures["latency_of_all"].get("total")
        return bool(lag and total and lag["p99"] > 0.1 * total["p50"])

    def _goodput(self, good: Mapping[str, Any]) -> str:
        words = {"image": "images", "token": "first tokens"}
        limits = " and ".join(f"{words[name]} within {seconds(limit)}" for name, limit in good["deadlines_s"].items())
        return f"goodput {good['requests_per_s'] or 0:.3g} requests/s, {100 * (good['share'] or 0):.1f} %: {limits}"

    def _kinds(self) -> dict[str, Mapping[str, Any]]:
        """Latencies by kind, and over all kinds for those latencies that several kinds have."""
        kinds: dict[str, Mapping[str, Any]] = dict(self.figures["latency"])
        of_all = self.figures["latency_of_all"].items()
        shared = {name: it for name, it in of_all if sum(name in found for found in kinds.values()) > 1}
        return {**kinds, "all": shared} if shared else kinds

    def _rows(self) -> list[tuple[str, ...]]:
        rows: list[tuple[str, ...]] = [("kind", "latency", "n", "mean", *QUANTILES, "max")]
        for kind, found in self._kinds().items():
            for name in LATENCIES:
                if name in found:
                    it = found[name]
                    times = (seconds(it[column]) for column in ("mean", *QUANTILES, "max"))
                    rows.append((kind, name, str(it["n"]), *times))
        return rows

    def svg(self) -> str:
        """Medians with whiskers up to p99, and curves of the slow requests. At least one request must be a success."""
        colors = dict(zip(self._kinds(), COLORS, strict=False))
        rows = [
            Bar(f"{kind}, {name}", it["p50"], it["p50"], it["p99"], seconds(it["p50"]), colors[kind])
            for kind, found in self._kinds().items()
            for name, it in found.items()
            if name in LATENCIES and it["p50"] > 0
        ]
        panels: list[Panel] = []
        if rows:
            axis = "median, logarithmic; whiskers: up to the 99th percentile"
            panels.append(bars("Latencies", self._rates(), rows, axis, short, logarithmic=True))
        series = self._tails(colors)
        if series:
            below = "Both axes logarithmic. Read: one request in so many takes at least as long"
            panels.append(lines("Slow requests", below, series, "one request in", short))
        return page("flashjanus bench serve", self._about(), panels)

    def _rates(self) -> str:
        made = self.figures["throughput"].items()
        return "; ".join(f"{value:.3g} {name.removesuffix('_per_s')}/s" for name, value in made if value)

    def _tails(self, colors: Mapping[str, str]) -> list[Line]:
        found = []
        for kind in self.figures["latency"]:
            own = [one for one in self.samples if one.kind == kind and one.error is None]
            shown = ("image", "total") if kind == "image" else ("first token", "total")
            for name, dashes in zip(shown, DASHES, strict=False):
                times = sorted(at for one in own for at in LATENCIES[name](one) if at is not None and at > 0)
                points = [(float(n), percentile(times, 1 - 1 / n)) for n in TAIL if n <= len(times)]
                if points:
                    found.append(Line(points, f"{kind}, {name}", colors[kind], dashes))
        return found
