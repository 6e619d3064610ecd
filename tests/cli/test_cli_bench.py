"""`bench`: options, outputs and errors; what it times is tested in tests/measure/bench."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest

SMALL = ("--steps", "2", "--prompt-tokens", "5", "--chat-tokens", "24", "--repeats", "1", "--dtype", "float32")


def test_latency_of_the_built_in_model(cli, tmp_path: Path) -> None:
    files = ["--json", tmp_path / "a.json", "--plot", tmp_path / "a.svg"]
    result = cli("bench", "latency", *SMALL, "--rounds", "2", "--batch", "1,2", "--peer", "torch", *files)
    assert result.code == 0
    lines = result.out.splitlines()
    assert lines[2].split()[:3] == ["stage", "sizes", "engine"]
    for stage in ("load", "first image", "first token", "prepare", "step", "VAE", "SigLIP", "prefill", "token"):
        assert any(line.startswith(f"{stage} ") for line in lines), stage
    data = json.loads((tmp_path / "a.json").read_text())
    assert data["kind"] == "latency"
    assert data["model"]["model"] == "shapes"
    assert {"machine", "versions", "commit", "command", "flashjanus", "date", "threads"} <= set(data)
    assert all(len(row["rounds_s"]) == 2 for row in data["records"])
    assert {row["engine"] for row in data["records"]} == {"flashjanus", "torch"}
    assert (tmp_path / "a.svg").read_text().startswith("<svg")
    assert "wrote" in result.err

    compared = cli("bench", "compare", tmp_path / "a.json", tmp_path / "a.json")
    assert compared.code == 0
    assert "too few rounds" in compared.out
    shown = cli("bench", "show", tmp_path / "a.json", "--plot", tmp_path / "again.svg")
    assert (shown.code, shown.out) == (0, result.out)
    assert (tmp_path / "again.svg").read_text() == (tmp_path / "a.svg").read_text()
    shown = cli("bench", "show", tmp_path / "a.json", "--markdown", "--goal", "step=99s", "--goal", "load=1.5s")
    assert (shown.code, shown.err) == (0, "")
    assert re.search(r"\| step \| rows 1, prompt_tokens 5 \|.* torch .*\| 99.0 s \| yes \|", shown.out)
    refused = cli("bench", "show", tmp_path / "a.json", "--markdown", "--goal", "step=fast")
    assert (refused.code, refused.out) == (2, "")
    assert "expected 2x" in refused.err

    value = cli("bench", "compare", tmp_path / "a.json", tmp_path / "a.json", "--json").json
    assert {it["ratio"]["value"] for it in value["differences"] if it["stage"] == "load"} == {1.0}


def test_rounds_that_the_minutes_left_out_are_named(cli) -> None:
    options = ("--stages", "prepare", "--rounds", "3", "--minutes", "0")
    result = cli("bench", "latency", *SMALL, *options)
    assert result.code == 0
    assert "1 of 3 rounds ran: another would have ended after --minutes 0" in result.err


def test_throughput_as_one_json_object(cli) -> None:
    options = ("--random-weights", "shapes", "--rounds", "1", "--batch", "2", "--quiet", "--json")
    result = cli("bench", "throughput", *SMALL, *options)
    assert (result.code, result.err) == (0, "")
    found = {row["stage"]: row["rates"] for row in result.json["records"]}
    assert set(found) == {"latents", "image", "token", "mix"}
    assert set(found["mix"]) == {"images/s", "tokens/s"}


def test_ops(cli, tmp_path: Path) -> None:
    result = cli("bench", "ops", *SMALL, "--ops", "silu_mul,linear", "--json", tmp_path / "o.json")
    assert result.code == 0
    assert "ceilings: copy" in result.out
    data = json.loads((tmp_path / "o.json").read_text())
    assert {row["stage"] for row in data["records"]} == {"silu_mul", "linear"}
    assert data["ceilings"]["bytes_per_s"] > 0
    assert set(data["ceilings"]["flops_per_s"]) == {"float32"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["latency", "--batch", "0"], "expected an integer from 1"),
        (["latency", "--steps", "3,x"], "--steps"),
        (["latency", "--minutes", "nan"], "--minutes"),
        (["latency", "--plot", "a.png"], "expected FILE.svg"),
        (["latency", "--peer", "onnx"], "--peer"),
        (
            ["latency", "--peer", "diffusers", "--official-python", "none"],
            "--official-python none: expected",
        ),
        (["latency", "--peer", "official"], "--official-repo"),
        (["latency", "--peer", "official-compiled", "--official-repo", "."], "--official-script"),
        (["latency", "--random-weights", "full", "--model", "x"], "cannot be combined with --model"),
        (["latency", "--random-weights", "huge"], "huge"),
        (["latency", "--json", "/nowhere/a.json"], "cannot write"),
        (["throughput", "--stages", "step,steps"], "'steps'"),
        (["latency", "--random-weights", "shapes", "--stages", "load"], "import, start, load: only for a checkpoint"),
        (["latency", "--prompt-tokens", "5000"], "prompt_tokens of at most"),
        (["latency", "--peer", "official", "--official-repo", ".", "--official-script", "none"], "--official-script"),
        (["ops", "--ops", "sofmax"], "'sofmax'"),
        (["ops", "--batch", "1,2"], "one value of rows"),
        (["compare", "none.json", "none.json"], "no such file"),
        (["compare", "a.json"], "B.json"),
        (["compare", "a", "b", "--margin", "-3"], "--margin"),
        (["show", "none.json"], "no such file"),
        (["show", "a.json", "--plot", "a.png"], "expected FILE.svg"),
        (["show", "a.json", "--goal", "step"], "expected STAGE=GOAL"),
        (["show", "a.json", "--goal", "step=2x"], "requires --markdown"),
        ([], "SUITE"),
    ],
)
def test_bad_input_is_one_line_and_exit_2(cli, arguments: list[str], words: str) -> None:
    result = cli("bench", *arguments)
    assert (result.code, result.out) == (2, "")
    assert words in result.err
    assert result.err.count("\n") == 1


def test_an_error_in_json(cli) -> None:
    assert cli("bench", "ops", "--ops", "sofmax", "--json").json["error"]["type"] == "InputError"


def test_an_interrupt_leaves_no_file(spawn: Callable[..., Popen[bytes]], tmp_path: Path) -> None:
    program = (
        "import os, signal, sys\n"
        "from flashjanus.measure.bench import bench_report, stages\n"
        "from flashjanus.cli import main\n"
        "stages.Stages.time = lambda *_: os.kill(os.getpid(), signal.SIGINT)\n"
        "sys.exit(main())\n"
    )
    files = ["--json", tmp_path / "a.json", "--plot", tmp_path / "a.svg"]
    process = spawn("-c", program, "bench", "latency", *SMALL, *files, module=False)
    out, err = process.communicate(timeout=120)
    assert process.returncode == 130, err
    assert (out, err) == (b"", b"flashjanus: interrupted\n")
    assert list(tmp_path.iterdir()) == []
