"""Computes figures from samples: percentiles, rates, goodput and errors. All are pure functions of numbers."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from itertools import pairwise
from typing import Any

from .sample import Sample

QUANTILES = {"p50": 0.5, "p90": 0.9, "p99": 0.99}
Times = Callable[[Sample], Iterable[float | None]]


def percentile(values: Sequence[float], share: float) -> float:
    """The value below which `share` of the sorted `values` lie, interpolated linearly between the two nearest."""
    at = share * (len(values) - 1)
    low, high = values[math.floor(at)], values[math.ceil(at)]
    return low + (high - low) * (at - math.floor(at))


def _since_due(name: str) -> Times:
    def times(sample: Sample) -> list[float | None]:
        at = getattr(sample, name)
        return [None if at is None else at - sample.due]

    return times


def _first_token(sample: Sample) -> list[float | None]:
    return [sample.pieces[0] - sample.due] if sample.pieces else []


def _per_token(sample: Sample) -> list[float | None]:
    """The mean time per token after the first."""
    if len(sample.pieces) < 2 or sample.tokens < 2:
        return []
    return [(sample.pieces[-1] - sample.pieces[0]) / (sample.tokens - 1)]


def _between(sample: Sample) -> list[float | None]:
    return [after - before for before, after in pairwise(sample.pieces)]


LATENCIES: dict[str, Times] = {
    "admission": _since_due("headers"),
    "first event": _since_due("event"),
    "first token": _first_token,
    "per token": _per_token,
    "between tokens": _between,
    "first partial": _since_due("partial"),
    "image": _since_due("image"),
    "total": _since_due("ended"),
}
"""Times since the request was due: to the response's headers, the first event, the first text, the first partial
image, the last image and the end. per token: one figure per request; between tokens: one per pair of text pieces."""


def spread(values: Iterable[float]) -> dict[str, float] | None:
    """n, mean, percentiles and max in seconds; None if there are no values."""
    found = sorted(values)
    if not found:
        return None
    shares = {name: percentile(found, share) for name, share in QUANTILES.items()}
    return {"n": len(found), "mean": math.fsum(found) / len(found), **shares, "max": found[-1]}


def latencies(samples: Sequence[Sample]) -> dict[str, dict[str, float]]:
    """The spread of each latency, by name, over the requests that succeeded; names without values are left out."""
    good = [sample for sample in samples if sample.error is None]
    found = {
        name: spread(at for one in good for at in times(one) if at is not None) for name, times in LATENCIES.items()
    }
    return {name: it for name, it in found.items() if it is not None}


def is_in_time(sample: Sample, deadlines: Mapping[str, float]) -> bool:
    """Whether a request succeeded and met the deadlines. deadlines: seconds to the last whole image ("image") and to
    the first token ("token")."""
    at = sample.image if sample.kind == "image" else sample.pieces[0] if sample.pieces else sample.ended
    limit = deadlines.get("image" if sample.kind == "image" else "token", math.inf)
    return sample.error is None and at is not None and at - sample.due <= limit


def most_at_once(samples: Sequence[Sample]) -> int:
    """The largest number of requests that were unanswered at the same time."""
    changes = sorted(change for one in samples for change in ((one.sent, 1), (one.ended, -1)) if one.ended > one.sent)
    most = flying = 0
    for _, change in changes:
        flying += change
        most = max(most, flying)
    return most


def errors(samples: Iterable[Sample]) -> list[dict[str, Any]]:
    """Errors with their counts, the most frequent first, each with its first message."""
    failed = [sample for sample in samples if sample.error is not None]
    counts = Counter((sample.kind, str(sample.error)) for sample in failed)
    said = {(sample.kind, sample.error): sample.message for sample in reversed(failed)}
    return [
        {"kind": kind, "error": error, "count": count, "message": said[kind, error]}
        for (kind, error), count in counts.most_common()
    ]


def summary(samples: Sequence[Sample], deadlines: Mapping[str, float]) -> dict[str, Any]:
    """All figures of a run. Rates count what succeeded, over the time from the first request to the end of the last."""
    start, end = min((one.sent for one in samples), default=0.0), max((one.ended for one in samples), default=0.0)
    seconds = end - start
    good = [sample for sample in samples if sample.error is None]

    def rate(count: float) -> float | None:
        return count / seconds if seconds > 0 else None

    in_time = sum(is_in_time(sample, deadlines) for sample in samples)
    kinds = sorted({sample.kind for sample in samples})
    return {
        "seconds": seconds,
        "requests": {"sent": len(samples), "succeeded": len(good), "failed": len(samples) - len(good)},
        "most_at_once": most_at_once(samples),
        "lag": spread(sample.sent - sample.due for sample in samples),
        "throughput": {
            "requests_per_s": rate(len(good)),
            "images_per_s": rate(sum(sample.images for sample in good)),
            "tokens_per_s": rate(sum(sample.tokens for sample in good)),
        },
        "goodput": {
            "deadlines_s": dict(deadlines),
            "requests": in_time,
            "share": in_time / len(samples) if samples else None,
            "requests_per_s": rate(in_time),
        }
        if deadlines
        else None,
        "latency": {
            kind: {
                "succeeded": sum(one.kind == kind for one in good),
                "failed": sum(one.kind == kind for one in samples) - sum(one.kind == kind for one in good),
                **latencies([one for one in samples if one.kind == kind]),
            }
            for kind in kinds
        },
        "latency_of_all": latencies(samples),
        "errors": errors(samples),
    }
