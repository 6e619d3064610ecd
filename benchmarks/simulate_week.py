"""A week of requests on up to 64 replicas: where the queue breaks, and what the autoscaler does. Nothing is measured:
times of steps are computed for an H200, and the rest follows from them (flashjanus/cluster/simulation.py).

    python benchmarks/simulate_week.py --json week.json --plot week.svg > week.md
"""

from __future__ import annotations

import argparse
import math
import sys
from collections.abc import Callable, Iterable, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
from flashjanus.cluster.simulation import (
    LATE,
    REFUSED,
    SERVED,
    Fleet,
    Floats,
    Law,
    Outcome,
    Requests,
    Simulation,
    arrivals,
    percentiles,
)
from flashjanus.disk.writing import write_json, write_text
from flashjanus.measure.drawing import COLORS, Line, Panel, lines, page

# Computed for an H200 in bfloat16 from tiles, waves and bytes at 790 TFLOP/s and 4.3 TB/s (gpu_stages/report.py).
STEP = (5.7e-3 + 6.2e-3) / 2
SIXTEEN = 16 / 6.6
VAE = (4.3e-3 + 4.8e-3) / 2
TOKEN = 1.1e-3
SIGLIP, PREFILL = 1.45e-3, 2.0e-3 / 0.7
"""Seconds of: an evaluation of one image with guidance; sixteen images of 30 steps with their VAE; the VAE of one
image; a token of one answer; the reading of an image; 620 tokens of a conversation at 0.7 of the roofline."""
KEYS = 2 * 24 * 16 * 128 * 2 * 700 / 4.3e12
"""Seconds of a further answer of 700 tokens, for reading its keys and values."""
PER_IMAGE = ((SIXTEEN - 16 * VAE) / 30 - STEP) / 15
LAW = Law(STEP - PER_IMAGE, PER_IMAGE, TOKEN - KEYS, KEYS)

DAY, WEEK = 86_400, 7 * 86_400
KINDS = (
    # share, kind, evaluations of an image; those of a preset as the number of whole ones that cost as much
    (0.45, "image, 30 steps", 30.0),
    (0.05, "image, 50 steps", 50.0),
    (0.15, "image, preset fast", 9.0),
    (0.35, "answer about an image, 120 tokens in the mean", 0.0),
)
MORE = 2.0
"""Further work, in evaluations of an image: its prompt, and its picture from the latents."""
READING = (SIGLIP + PREFILL) / TOKEN
"""Further work before the first token of an answer, in tokens."""
BURSTS = 20
BUSIEST = 1.75
"""Requests per second of a weekday's busiest time, divided by the mean of the week."""
DAYS = (20, 50, 100, 150, 175, 200, 225)
"""Multiples of the week's load."""
BASE, FACTORS, VARIED = 50, (1, 1.25, 1.5, 2, 3, 4, 6, 8), 3
STEADY, USUAL = 100, Fleet(target=4, downscaling=1.0)
"""The load, and the fleet with Serve's default of scaling down all at once, which are shown together."""
LEAST = 1e-5
"""Shown for a share of zero, because the axis is logarithmic."""


def rates(random: np.random.Generator) -> Floats:
    """Requests per second, in each second of a week, with a mean of 1: by day twice as many as by night, fewer at the
    weekend, and bursts of three to eight times as many for two to ten minutes."""
    at = np.arange(WEEK)
    found = 1 + 0.6 * np.sin(2 * np.pi * (at / DAY - 0.375))
    found = found * np.where(at // DAY >= 5, 0.6, 1.0)
    for _ in range(BURSTS):
        begins, lasts = int(random.integers(WEEK)), int(random.integers(120, 600))
        found[begins : begins + lasts] *= random.uniform(3, 8)
    return np.asarray(found / found.mean())


def requests(curve: Floats, count: int, random: np.random.Generator) -> Requests:
    shares = [share for share, _, _ in KINDS]
    kinds = random.choice(len(KINDS), count, p=shares)
    evaluations = np.array([work for _, _, work in KINDS])[kinds]
    tokens = np.clip(random.lognormal(np.log(120) - 0.32, 0.8, count), 1, 512)
    is_image = evaluations > 0
    return Requests(arrivals(curve, count, random), np.where(is_image, evaluations + MORE, tokens + READING), is_image)


def summary(out: Outcome, asked: Requests, seconds: float) -> dict[str, Any]:
    count = len(out.became)
    shares = {name: float((out.became == one).sum()) / count for name, one in BECAME.items()}
    samples = out.samples
    return {
        "requests": count,
        "seconds": seconds,
        "requests_per_second": count / seconds,
        **shares,
        "waited": percentiles(out.waited),
        "image": percentiles(out.took[asked.is_image]),
        "answer": percentiles(out.took[~asked.is_image]),
        "replicas": {"least": samples[:, 1].min(), "mean": samples[:, 1].mean(), "most": samples[:, 1].max()},
        "most_waiting": samples[:, 4].max(),
        "replica_hours": out.replica_seconds / 3600,
    }


BECAME = {"served": SERVED, "refused": REFUSED, "late": LATE}


def week(count: int, fleet: Fleet, seed: int) -> tuple[dict[str, Any], Outcome]:
    random = np.random.default_rng(seed)
    curve = rates(random)
    peak = float(curve.max()) * count / WEEK
    asked = requests(curve, count, random)
    out = Simulation(asked, LAW, fleet, seed).run()
    return {"peak_requests_per_second": peak, **summary(out, asked, WEEK)}, out


def part(curve: Floats, fleet: Fleet, seed: int, one: float) -> dict[str, Any]:
    """Simulate these requests per second. one: requests per second that a replica serves.

    The simulation begins with the replicas that its first minute needs at 0.6 of their capacity.
    """
    random = np.random.default_rng(seed)
    asked = requests(curve, round(float(curve.sum())), random)
    needed = math.ceil(float(curve[:60].mean()) / (0.6 * one))
    out = Simulation(asked, LAW, fleet, seed, min(fleet.most, max(fleet.least, needed))).run()
    return {"peak_requests_per_second": float(curve.max()), **summary(out, asked, len(curve))}


def day(times: float, mean: float) -> Floats:
    """Forty minutes of a weekday at its busiest, without bursts, at `times` the load of a week with this mean."""
    return np.full(2400, BUSIEST * mean * times)


def burst(factor: float, mean: float) -> Floats:
    """Forty minutes at fifty times the week's load, in which three minutes have `factor` times as many requests."""
    found = day(BASE, mean) / BUSIEST
    found[600:780] *= factor
    return found


def capacity(fleet: Fleet, count: int = 20_000) -> float:
    """Requests per second of one replica that always has as many as it may have."""
    random = np.random.default_rng(0)
    asked = requests(np.full(100, count / 100), count, random)
    asked = replace(asked, at=np.zeros(count))
    always = replace(fleet, least=1, most=1, queued=float(count), deadline=float("inf"))
    took = Simulation(asked, LAW, always).run().took
    return count / float(took.max())


def report(count: int, fleet: Fleet, seed: int, said: Callable[[str], None]) -> tuple[dict[str, Any], Outcome]:
    mean, one = count / WEEK, capacity(fleet)
    said(f"one replica serves {one:.2f} requests a second")
    whole, out = week(count, fleet, seed)
    tables: dict[str, list[dict[str, Any]]] = {"days": [], "bursts": [], "fleets": []}

    def add(table: str, what: str, curve: Floats, one_fleet: Fleet, **more: float) -> None:
        tables[table].append({"what": what, **more, **part(curve, one_fleet, seed, one)})
        said(f"{table}: {what}: {tables[table][-1]['refused']:.4f} refused")

    for times in DAYS:
        add("days", f"x {times}", day(times, mean), fleet, times=times)
    add("days", f"x {STEADY}, Serve's usual way down, target 4", day(STEADY, mean), USUAL, times=STEADY)
    for factor in FACTORS:
        add("bursts", f"{factor:g} times as many", burst(factor, mean), fleet, factor=factor)
    fleets = {
        "target 1": replace(fleet, target=1),
        "target 4": replace(fleet, target=4),
        "target 8": replace(fleet, target=8),
        "ongoing 16": replace(fleet, ongoing=16),
        "begins in 15 s": replace(fleet, startup=15),
        "begins in 180 s": replace(fleet, startup=180),
        "queue x 4": replace(fleet, queued=4 * fleet.queued),
        f"never less than {fleet.most}": replace(fleet, least=fleet.most),
    }
    for what, other in fleets.items():
        add("fleets", what, burst(VARIED, mean), other)
    facts = {"note": NOTE, "law": asdict(LAW), "fleet": asdict(fleet), "seed": seed, "capacity": one}
    return {**facts, "week": whole, **tables}, out


NOTE = "step times are computed for an H200, none is measured"
COLUMNS = (
    "requests/s, mean and peak",
    "refused",
    "late",
    "wait p50, p99 s",
    "image p50, p99 s",
    "answer p50, p99 s",
    "replicas, mean and most",
    "replica hours for 10^6 served",
)


def markdown(found: dict[str, Any]) -> str:
    fleet, one = found["fleet"], found["capacity"]
    base = found["bursts"][0]["requests_per_second"]
    tables = {
        "The week, and the busiest minutes of its days at so many times its load": [
            {"what": "the week", **found["week"]},
            *found["days"],
        ],
        f"A burst of three minutes beside {base:.0f} requests a second": found["bursts"],
        f"The burst of {VARIED:g} times as many, with another fleet": found["fleets"],
    }
    head = "|".join(("", "", *COLUMNS, "\n", *["---"] * (1 + len(COLUMNS)), ""))
    parts = [
        f"{found['note'][0].upper()}{found['note'][1:]}. One replica that is never idle serves {one:.2f} of these "
        f"requests a second, {fleet['most']} serve {fleet['most'] * one:.0f}."
    ]
    for title, rows in tables.items():
        parts.append(f"{title}:\n\n{head}\n" + "\n".join(row(one["what"], one) for one in rows))
    return "\n\n".join(parts) + "\n"


def row(name: str, one: dict[str, Any]) -> str:
    hours = one["replica_hours"] / (one["served"] * one["requests"]) * 1e6
    rate = f"{one['requests_per_second']:.3g}, {one['peak_requests_per_second']:.3g}"
    replicas = f"{one['replicas']['mean']:.1f}, {one['replicas']['most']:.0f}"
    times = (f"{one[kind][0]:.2f}, {one[kind][2]:.2f}" for kind in ("waited", "image", "answer"))
    cells = (name, rate, f"{one['refused']:.2%}", f"{one['late']:.2%}", *times, replicas, f"{hours:.0f}")
    return f"| {' | '.join(cells)} |"


def plot(found: dict[str, Any]) -> str:
    def panel(title: str, below: str, rows: Sequence[dict[str, Any]], x: str, axis: str) -> Panel:
        def line(words: str, values: Iterable[float], color: int, dashes: str = "") -> Line:
            points = [(float(one[x]), max(value, LEAST)) for one, value in zip(rows, values, strict=True)]
            return Line(points, words, COLORS[color], dashes)

        series = [
            line("share refused or late", (one["refused"] + one["late"] for one in rows), 3),
            line("image, p99, seconds", (one["image"][2] for one in rows), 0),
            line("image, p50, seconds", (one["image"][0] for one in rows), 0, "6 4"),
            line("answer, p99, seconds", (one["answer"][2] for one in rows), 2),
            line("replicas, most", (one["replicas"]["most"] for one in rows), 1),
        ]
        return lines(title, below, series, axis, "{:g}".format)

    panels = [
        panel("The busiest minutes of a day", "no bursts", found["days"][:-1], "times", "times the load of the week"),
        panel("A burst of three minutes", "begins at once", found["bursts"], "factor", "times as many requests"),
    ]
    return page("Up to 64 replicas, simulated", found["note"], panels)


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--requests", type=int, default=1_000_000, help="of the week (default: 1000000)")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path)
    args = parser.parse_args(arguments)
    found, out = report(args.requests, Fleet(), args.seed, lambda words: print(words, file=sys.stderr))
    found["hours"] = [[round(float(value), 2) for value in sample] for sample in out.samples[::60]]
    if args.json is not None:
        write_json(args.json, found)
    if args.plot is not None:
        write_text(args.plot, plot(found))
    print(markdown(found), end="")


if __name__ == "__main__":
    main()
