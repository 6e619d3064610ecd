"""`schedule`: what it prints serves as --step-cache; what it finds is tested in tests/measure/quality."""

from __future__ import annotations

from pathlib import Path

import pytest


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("a red circle\n")
    return path


def test_a_printed_schedule_is_an_option_of_generate(cli, tmp_path: Path, prompts: Path) -> None:
    result = cli("schedule", "--preset", "fast", "--steps", "6", "--prompts", prompts)
    head, *rows = [line.split() for line in result.out.splitlines()]
    assert head == ["runs", "error", "--step-cache"]
    assert [int(row[0]) for row in rows] == [2, 3, 4, 5]
    drawn = cli(
        *("generate", "a red circle", "--seed", "1", "--steps", "6", "--step-cache", rows[1][2]),
        *("--json", "--out", tmp_path),
    )
    assert drawn.json["step_cache"] == [float(t) for t in rows[1][2].split(",")]
    assert len(drawn.json["step_cache"]) == 3


def test_one_number_of_runs_as_json(cli, prompts: Path) -> None:
    result = cli("schedule", "--steps", "5", "--runs", "3", "--prompts", prompts, "--json", "--quiet")
    assert (result.code, result.err) == (0, "")
    (found,) = result.json["schedules"]
    assert found["runs"] == len(found["times"]) == 3
    assert found["error"] > 0
    assert result.json["steps"] == 5


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--steps", "5", "--runs", "5"], "--runs: expected 2 to 4 for 5 evaluations, got 5"),
        (["--steps", "5", "--runs", "1"], "--runs: expected 2 to 4"),
        (["--steps", "2"], "num_inference_steps: expected at least 3, got 2"),
        (["--prompts", "none.txt"], "one prompt per line"),
        (["--seed", "-1"], "seed: expected"),
        (["--step-cache", "often"], "--step-cache"),
    ],
)
def test_errors_say_what_is_wrong(cli, arguments: list[str], words: str) -> None:
    result = cli("schedule", *arguments)
    assert result.code == 2
    assert words in result.err
