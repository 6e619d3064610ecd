"""Figures of samples that are given."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from array import array
from typing import Any

import numpy as np
import pytest
from flashjanus.errors import InputError
from flashjanus.measure.bench.serving.figures import latencies, most_at_once, percentile, spread, summary
from flashjanus.measure.bench.serving.sample import Sample
from flashjanus.measure.bench.serving.serve_report import ServeReport
from hypothesis import given
from hypothesis import strategies as st

HEAD = {"model": "stub", "endpoint": "http://127.0.0.1:1/v1", "load": "closed loop of 2"}


@given(st.lists(st.floats(0, 1e3), min_size=1), st.sampled_from([0.5, 0.9, 0.99]))
def test_percentiles_are_those_of_numpy(values: list[float], share: float) -> None:
    assert percentile(sorted(values), share) == pytest.approx(np.quantile(values, share), rel=1e-9, abs=1e-12)


def test_a_spread() -> None:
    assert spread([]) is None
    assert spread([4.0, 1.0, 2.0]) == {
        "n": 3,
        "mean": pytest.approx(7 / 3),
        "p50": 2.0,
        "p90": pytest.approx(3.6),
        "p99": pytest.approx(3.96),
        "max": 4.0,
    }


def image(due: float, took: float, **more: Any) -> Sample:
    at = due + took
    return Sample("image", due, due, at, due + 0.1, due + 0.2, partial=due + 0.5, image=at, images=1, tokens=0, **more)


def chat(due: float, pieces: list[float], tokens: int, **more: Any) -> Sample:
    times = array("d", [due + at for at in pieces])
    return Sample("chat", due, due + 0.25, times[-1], due + 0.3, due + 0.4, times, tokens=tokens, **more)


def samples() -> list[Sample]:
    failed = Sample("chat", 3.0, 3.0, 3.5, error="429 queue_full", message="the queue is full")
    return [image(0.0, 2.0), image(1.0, 4.0), chat(0.5, [1.0, 1.5, 3.0], 5), failed]


def test_latencies_count_from_when_a_request_was_due() -> None:
    found = latencies(samples())
    means = {name: (it["n"], pytest.approx(it["mean"])) for name, it in found.items()}
    assert means == {
        "admission": (3, pytest.approx(0.5 / 3)),
        "first event": (3, pytest.approx(0.8 / 3)),
        "first token": (1, 1.0),
        "per token": (1, 0.5),
        "between tokens": (2, 1.0),
        "first partial": (2, 0.5),
        "image": (2, 3.0),
        "total": (3, 3.0),
    }
    assert found["between tokens"]["max"] == 1.5


def test_a_summary() -> None:
    found = summary(samples(), {"image": 3.0, "token": 1.0})
    assert found["seconds"] == 5.0
    assert found["requests"] == {"sent": 4, "succeeded": 3, "failed": 1}
    assert found["throughput"] == {"requests_per_s": 0.6, "images_per_s": 0.4, "tokens_per_s": 1.0}
    assert found["goodput"] == {
        "deadlines_s": {"image": 3.0, "token": 1.0},
        "requests": 2,
        "share": 0.5,
        "requests_per_s": 0.4,
    }
    assert found["errors"] == [{"kind": "chat", "error": "429 queue_full", "count": 1, "message": "the queue is full"}]
    assert found["latency"]["chat"]["failed"] == 1
    assert "first token" not in found["latency"]["image"]
    assert found["lag"]["max"] == 0.25
    assert found["most_at_once"] == 3
    assert summary(samples(), {})["goodput"] is None


def test_requests_that_touch_are_not_at_once() -> None:
    assert most_at_once([image(0.0, 1.0), image(1.0, 1.0), image(1.5, 1.0)]) == 2


def test_a_report_in_words_json_and_svg() -> None:
    report = ServeReport(HEAD, samples(), {"image": 3.0})
    words = str(report)
    for said in ("4 requests in 5.00 s, 1 failed, 3 at once", "0.4 images/s", "goodput 0.4", "429 queue_full"):
        assert said in words
    rows = [line.split() for line in words.splitlines()]
    assert ["all", "total", "3", "3.00", "s", "3.00", "s", "3.80", "s", "3.98", "s", "4.00", "s"] in rows
    assert "by this client" not in words
    data = json.loads(json.dumps(report.to_json(), allow_nan=False))
    assert data["samples"][2]["pieces"] == [1.5, 2.0, 3.5]
    svg = report.svg()
    xml.etree.ElementTree.fromstring(svg)
    assert {"image, image", "chat, first token"} <= set(svg.replace("<", ">").split(">"))


def test_a_client_that_cannot_keep_pace_says_so() -> None:
    late = [Sample("chat", n / 10, n / 10 + 5, n / 10 + 6, tokens=1) for n in range(9)]
    assert "sent 5.00 s late (p99)" in str(ServeReport(HEAD, late, {}))


@pytest.mark.parametrize("given", [[], [Sample("image", 0.0, 0.0, 1.0, error="timeout")]])
def test_a_report_of_nothing(given: list[Sample]) -> None:
    report = ServeReport(HEAD, given, {"image": 1.0})
    assert report.succeeded == 0
    assert "nothing succeeded" in str(report)
    json.dumps(report.to_json(), allow_nan=False)
    xml.etree.ElementTree.fromstring(report.svg())


@pytest.mark.parametrize(
    "change",
    [
        {"samples": {}},
        {"samples": [{}]},
        {"samples": [3]},
        {"goodput": {"deadlines_s": 3}},
        {"goodput": {"deadlines_s": {"image": "x"}}},
        {"endpoint": None},
    ],
)
def test_another_report_is_refused(change: dict[str, Any]) -> None:
    data = {**ServeReport(HEAD, samples(), {"image": 3.0}).to_json(), **change}
    data = {name: value for name, value in data.items() if value is not None}
    with pytest.raises(InputError, match=r"a\.json: "):
        ServeReport.of_json(data, "a.json")


def test_a_sample_that_was_changed_is_refused() -> None:
    good = chat(0.0, [1.0], 1).to_json()
    assert Sample.of_json(good) == chat(0.0, [1.0], 1)
    for change in ({"due": "x"}, {"pieces": 3}, {"pieces": ["x"]}, {"image": "x"}, {"tokens": None}, {"more": 1}):
        with pytest.raises(ValueError, match="expected"):
            Sample.of_json({**good, **change})
