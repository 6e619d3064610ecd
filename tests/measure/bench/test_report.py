"""Reports: JSON there and back, tables, the picture, and which differences exceed the noise."""

from __future__ import annotations

import json
import xml.etree.ElementTree
from pathlib import Path

import pytest
from flashjanus.errors import InputError
from flashjanus.measure.bench.bench_report import Report, differences
from flashjanus.measure.bench.chart import svg
from flashjanus.measure.timing import Case, Record
from flashjanus.measure.words import commit, seconds

MODEL = {"model": "small", "device": "cpu", "dtype": "float32", "numerics": "exact"}
ROWS = [1.0, 1.1, 0.9, 1.05, 0.95, 1.0]


def report(kind: str = "latency", factor: float = 1.0, noise: float = 1.0) -> Report:
    """Six rounds; a token differs by `factor`, a step by `noise`."""
    step, step2, token = Case("step", (("rows", 1),)), Case("step", (("rows", 2),)), Case("token", (("rows", 1),))
    records = [
        Record(step, "flashjanus", [[noise * x] for x in ROWS]),
        Record(step, "official", [[1.5 * x] for x in ROWS]),
        Record(step2, "flashjanus", [[1.9 * x] for x in ROWS]),
        Record(token, "flashjanus", [[factor * 0.01 * x] for x in ROWS]),
    ]
    return Report({"kind": kind, "model": MODEL, "threads": 2}, records)


def op_report() -> Report:
    case = Case("silu_mul", (("program", "prefill"), ("node", "llm.0.silu_mul"), ("of", "x bf16[1, 4]")))
    facts = {"nodes": 2, "bytes_per_s": 2e9, "flops_per_s": 1e9, "share": 0.4, "bound": "memory"}
    records = [
        Record(case, "native", [[1e-5]] * 5, {**facts, "chosen": True}),
        Record(case, "torch", [[3e-5]] * 5, {**facts, "chosen": False}),
    ]
    ceilings = {"bytes_per_s": 5e9, "flops_per_s": {"float32": 1e11}}
    return Report({"kind": "ops", "model": MODEL, "threads": 2, "ceilings": ceilings}, records)


def test_json_there_and_back(tmp_path: Path) -> None:
    made = report("throughput")
    path = tmp_path / "a.json"
    path.write_text(json.dumps(made.to_json()))
    assert Report.read(str(path)) == made
    rows = made.to_json()["records"]
    assert rows[1]["ratio"]["value"] == pytest.approx(1.5)
    assert rows[3]["rates"] == {"tokens/s": pytest.approx(100.0)}
    assert "ratio" not in rows[0]


def test_the_table() -> None:
    lines = str(report()).splitlines()
    assert lines[0] == "small, float32 on cpu, 2 threads"
    assert " ".join(lines[3].split()) == "step rows 1 flashjanus 1.00 s 962 ms to 1.04 s 6 x 1"
    assert lines[4].endswith("1.50 [1.50, 1.50] 97 %")
    assert "100 tokens/s" in lines[6]


def test_the_table_of_ops() -> None:
    lines = str(op_report()).splitlines()
    assert lines[1] == "ceilings: copy 5.0 GB/s, float32 GEMM 100 GFLOP/s"
    assert lines[4].split()[:6] == ["silu_mul", "prefill", "2", "native*", "10.0", "us"]
    assert "40 % memory" in lines[4]


@pytest.mark.parametrize(
    ("value", "words"),
    [
        (12.345, "12.3 s"),
        (1.0, "1.00 s"),
        (0.9996, "1000 ms"),
        (0.25, "250 ms"),
        (3e-6, "3.00 us"),
        (5e-9, "0.00500 us"),
    ],
)
def test_seconds(value: float, words: str) -> None:
    assert seconds(value) == words


def test_a_difference_inside_and_one_outside_of_the_noise() -> None:
    found = differences(report(), report(factor=1.5, noise=1.06), margin=0.02)
    assert [(it.before.case.stage, it.before.engine, it.verdict) for it in found] == [
        ("step", "flashjanus", "within the noise"),
        ("step", "official", "within the noise"),
        ("step", "flashjanus", "within the noise"),
        ("token", "flashjanus", "slower"),
    ]
    assert found[3].ratio.low <= 1.5 <= found[3].ratio.high
    assert differences(report(factor=1.5), report(), margin=0.02)[3].verdict == "faster"


def test_nothing_in_common() -> None:
    with pytest.raises(InputError, match="nothing to compare"):
        differences(report(), op_report(), 0.05)


@pytest.mark.parametrize("made", [report(), op_report()])
def test_the_picture_is_xml(made: Report) -> None:
    text = svg(made)
    xml.etree.ElementTree.fromstring(text)
    for record in made.records:
        assert record.case.stage in text
    if made.kind == "latency":
        assert "images or conversations at once" in text
        assert "step, official" in text
        assert "1.50 [1.50, 1.50]" in text
        assert "brackets: 97 % confidence" in text
        assert "step: 1.00 s to 1.90 s, x1.9" in text


def test_names_cannot_leave_the_picture() -> None:
    made = report()
    made = Report({**made.head, "model": {**MODEL, "model": "<script>&"}}, made.records)
    assert "<script>" not in svg(made)


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ([], "expected a JSON object"),
        ({"kind": "latency"}, "what `flashjanus bench` wrote"),
        ({"kind": "speed", "records": []}, "what `flashjanus bench` wrote"),
        ({"kind": "ops", "records": [3]}, r"records\[0\]: expected stage"),
        ({"kind": "ops", "records": [{"stage": "a", "sizes": {}, "engine": "b", "rounds_s": [[]]}]}, r"records\[0\]"),
        ({"kind": "ops", "records": [{"stage": "a", "sizes": {}, "engine": "b", "rounds_s": [[-1]]}]}, "above 0"),
        ({"kind": "ops", "records": [{"stage": "a", "sizes": {}, "engine": "b", "rounds_s": [["x"]]}]}, "above 0"),
    ],
)
def test_other_json_is_refused(tmp_path: Path, data: object, words: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps(data))
    with pytest.raises(InputError, match=words):
        Report.read(str(path))


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        ({"model": {"model": "a"}}, "expected model"),
        ({"threads": None}, "expected model"),
        ({"kind": "ops"}, r"records\[0\]: expected facts bound, bytes_per_s"),
    ],
)
def test_a_head_that_no_table_can_be_made_of(tmp_path: Path, changed: dict[str, object], words: str) -> None:
    path = tmp_path / "other.json"
    path.write_text(json.dumps({**report().to_json(), **changed}))
    with pytest.raises(InputError, match=words):
        Report.read(str(path))


def test_a_missing_file(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        Report.read(str(tmp_path / "none.json"))


def test_the_commit_is_that_of_this_code() -> None:
    found = commit()
    assert found is None or len(found.removesuffix(" + changes")) == 40
