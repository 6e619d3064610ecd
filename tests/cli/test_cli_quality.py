"""`quality`: options, outputs, exit codes and errors; what it measures is tested in tests/measure/quality."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

FEW = ("--dtype", "float32", "--converged-steps", "60", "--rounds", "1", "--modes", "euler-10")


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\na square and a triangle\n")
    return path


def test_the_built_in_model(cli, tmp_path: Path, prompts: Path) -> None:
    files = ["--json", tmp_path / "q.json", "--plot", tmp_path / "q.svg"]
    mode = "two: num_inference_steps=5, best_of=2"
    result = cli("quality", *FEW, "--prompts", prompts, "--samples", "1", "--questions", "1", "--mode", mode, *files)
    assert result.code == 0
    assert result.out.splitlines()[2].split()[:2] == ["mode", "image"]
    assert "pictures right" in result.out
    data = json.loads((tmp_path / "q.json").read_text())
    assert {"machine", "versions", "commit", "command", "flashjanus", "date", "threads"} <= set(data)
    assert data["kind"] == "quality"
    assert data["prompts"] == ["a red circle", "a square and a triangle"]
    assert [row["mode"] for row in data["modes"]] == ["exact", "euler-10", "two"]
    for row in data["modes"]:
        assert row["pictures"]["samples"] == 6
        assert row["answers"]["samples"] == 7
        assert len(row["distance"]) == 2
    assert data["modes"][2]["options"] == {"num_inference_steps": 5, "best_of": 2}
    assert (tmp_path / "q.svg").read_text().startswith("<svg")
    assert "wrote" in result.err


def test_random_weights_and_the_bound_as_one_json_object(cli) -> None:
    options = ("--random-weights", "shapes", "--quiet", "--guidance", "1", "--bound", "2", "--json")
    result = cli("quality", *FEW, *options)
    assert (result.code, result.err) == (1, "")
    assert result.json["beyond_bound"] == ["euler-10"]
    assert result.json["modes"][0]["pictures"] is None


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--modes", "fastest"], "got 'fastest'"),
        (["--mode", "a: solve=3"], "got 'solve'"),
        (["--mode", "a"], "NAME: option=value"),
        (["--plot", "a.png"], "expected FILE.svg"),
        (["--json", "/nowhere/a.json"], "cannot write"),
        (["--random-weights", "thin", "--model", "x"], "cannot be combined with --model"),
        (["--random-weights", "thin", "--score"], "--score"),
        (["--prompts", "none.txt"], "one prompt per line"),
        (["--bound", "0"], "--bound"),
        (["--bound", "1", "--converged-steps", "0"], "--converged-steps above 0"),
        (["--converged-steps", "10"], "converged_steps: expected an integer from 60"),
        (["--rounds", "0"], "--rounds"),
        (["--seed", "-1"], "seed"),
        (["--random-weights", "shapes", "--mode", "a: best_of=2"], "needs a tokenizer"),
        (["--mode", "a: quantization=int3"], "quantization"),
        (["--mode", "a: dtype=int3"], "dtype"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(cli, arguments: list[str], words: str) -> None:
    result = cli("quality", *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert result.err.count("\n") == 1


def test_a_bound_needs_prompts(cli, prompts: Path) -> None:
    assert "at least 5 prompts" in cli("quality", "--bound", "1", "--prompts", prompts).err
