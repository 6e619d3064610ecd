"""Tables for documents: rows, goals, sources; and the tables of the documents here are what their commands print."""

from __future__ import annotations

import re
import shlex
from pathlib import Path

import pytest
from flashjanus.cli import main
from flashjanus.errors import InputError
from flashjanus.measure.bench.bench_report import Report
from flashjanus.measure.bench.document import Goal, markdown
from flashjanus.measure.timing import Case, Ratio, Record

ROOT = Path(__file__).parents[3]
TABLES = re.compile(r"^    flashjanus bench show (.*)\n\n((?:\|.*\n)+\n.*)\n", re.MULTILINE)
DOCUMENTS = [ROOT / name for name in ("README.md", "docs/benchmarks.md", "benchmarks/results/README.md")]
SHOWN = [(file.name, *found) for file in DOCUMENTS for found in TABLES.findall(file.read_text(encoding="utf-8"))]
HEAD = {
    "kind": "latency",
    "commit": "0123456789abcdef",
    "command": "flashjanus bench latency",
    "date": "2030-01-02T03:04:05+00:00",
    "machine": {"cpu": "A CPU"},
    "versions": {"torch": "2.13.0"},
    "model": {"model": "small", "device": "cpu", "dtype": "float32"},
    "threads": 2,
}


def record(stage: str, engine: str, seconds: float, rounds: int = 6) -> Record:
    return Record(Case(stage, (("rows", 1),)), engine, [[seconds]] * rounds)


def rows(text: str) -> list[list[str]]:
    return [[cell.strip() for cell in line.split("|")[1:-1]] for line in text.splitlines() if line.startswith("|")]


def test_a_row_for_each_of_the_others_and_for_what_has_none() -> None:
    records = [record("step", "flashjanus", 1.0), record("step", "official", 3.0), record("step", "torch", 2.0)]
    text = markdown(Report(HEAD, [*records, record("VAE", "flashjanus", 0.25)]), {"step": Goal.parse("2.5x")})
    assert rows(text) == [
        ["stage", "sizes", "flashjanus", "others", "speedup", "goal", "reached"],
        ["---"] * 7,
        ["step", "rows 1", "1.00 s", "official 3.00 s", "3.00 [3.00, 3.00]", "2.5x", "yes"],
        ["step", "rows 1", "1.00 s", "torch 2.00 s", "2.00 [2.00, 2.00]", "2.5x", "no"],
        ["VAE", "rows 1", "250 ms", "", "", "", ""],
    ]
    assert text.splitlines()[-1] == (
        "Medians. small, float32 on cpu; A CPU, 2 threads; torch 2.13.0; commit 0123456789; 2030-01-02. "
        "Brackets: 97 % confidence. `flashjanus bench latency`"
    )


def test_columns_without_anything_are_left_out_and_unknown_facts_too() -> None:
    head = {name: HEAD[name] for name in ("kind", "model", "threads")}
    text = markdown(Report(head, [record("load", "flashjanus", 0.02)]), {})
    assert rows(text) == [["stage", "sizes", "flashjanus"], ["---"] * 3, ["load", "rows 1", "20.0 ms"]]
    assert "unknown CPU, 2 threads; torch unknown; commit unknown." in text
    assert "Brackets" not in text


@pytest.mark.parametrize(
    ("goal", "ratio", "verdict"),
    [
        ("2x", Ratio(3.0, 2.0, 4.0, 0.95), "yes"),
        ("2x", Ratio(1.5, 1.0, 1.9, 0.95), "no"),
        ("2x", Ratio(2.5, 1.9, 3.0, 0.95), "within the noise"),
        ("2x", Ratio(9.0, 9.0, 9.0, 0.75), "too few rounds"),
        ("2x", None, ""),
        ("1.5s", None, "yes"),
        ("1.4s", Ratio(9.0, 9.0, 9.0, 0.95), "no"),
    ],
)
def test_verdicts(goal: str, ratio: Ratio | None, verdict: str) -> None:
    assert Goal.parse(goal).verdict(record("step", "flashjanus", 1.5), ratio) == verdict


@pytest.mark.parametrize("text", ["", "2", "x", "0x", "-1s", "1e9s", "2 x", "infs"])
def test_other_goals_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="expected 2x"):
        Goal.parse(text)


def test_the_source_names_the_quantization() -> None:
    head = {**HEAD, "model": {**HEAD["model"], "quantization": "int8"}}
    assert "Medians. small, int8, float32 on cpu;" in markdown(Report(head, [record("step", "flashjanus", 1.0)]), {})


def test_what_cannot_be_shown() -> None:
    with pytest.raises(InputError, match="--goal token: expected one of the report's stages, step"):
        markdown(Report(HEAD, [record("step", "flashjanus", 1.0)]), {"token": Goal.parse("2x")})
    with pytest.raises(InputError, match="got one of bench ops"):
        markdown(Report({**HEAD, "kind": "ops"}, []), {})


def test_there_are_tables_in_the_documents() -> None:
    assert {name for name, *_ in SHOWN} == {file.name for file in DOCUMENTS}


@pytest.mark.parametrize(("name", "arguments", "table"), SHOWN)
def test_a_document_holds_what_its_command_prints(
    name: str, arguments: str, table: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(ROOT)
    assert main(["bench", "show", *shlex.split(arguments)]) == 0
    assert table == capsys.readouterr().out.rstrip("\n"), f"put what the command prints into {name}"
