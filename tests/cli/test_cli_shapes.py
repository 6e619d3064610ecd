"""The command with the built-in model, in this process and as a process of its own."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import termios
import time
from collections.abc import Callable
from pathlib import Path
from subprocess import Popen

import pytest
from flashjanus import JanusFlow
from flashjanus.cli.plan import PROGRAMS
from PIL import Image

Spawn = Callable[..., "Popen[bytes]"]
LONG = ["--steps", "1000", "--num-images", "8"]


@pytest.fixture
def image(tmp_path: Path) -> Path:
    path = tmp_path / "image.jpg"
    Image.new("RGB", (50, 30), (255, 0, 0)).save(path)
    return path


def test_generate_in_a_pipe(spawn: Spawn, tmp_path: Path) -> None:
    process = spawn("generate", "a red circle", "--seed", "3", "--steps", "2", "--out", tmp_path)
    out, err = process.communicate(timeout=120)
    path = tmp_path / "a-red-circle-3.png"
    assert (process.returncode, err) == (0, b"")
    assert out.decode() == f"{path}\n"
    with Image.open(path) as drawn:
        assert drawn.size == (64, 64)
        assert (drawn.text["seed"], drawn.text["model"]) == ("3", "shapes")
        pixels = drawn.tobytes()
    again = spawn("generate", "a red circle", "--seed", "3", "--steps", "2", "--out", tmp_path)
    out, _ = again.communicate(timeout=120)
    assert out.decode() == f"{tmp_path / 'a-red-circle-3-2.png'}\n"
    with Image.open(out.decode().strip()) as drawn:
        assert drawn.tobytes() == pixels


def test_ask_in_a_pipe(spawn: Spawn, cli, image: Path) -> None:
    process = spawn("ask", image, "what is it?", "--max-new-tokens", "4", "--quiet")
    out, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (0, b"")
    assert out.endswith(b"\n")
    value = cli("ask", image, "what is it?", "--max-new-tokens", "4", "--json").json
    assert value["answer"] == out.decode()[:-1]


def test_ask_to_a_reader_that_leaves(spawn: Spawn, image: Path) -> None:
    read, write = os.pipe()
    os.close(read)
    process = spawn("ask", image, "what is it?", "--quiet", stdout=write)
    os.close(write)
    _, err = process.communicate(timeout=120)
    assert (process.returncode, err) == (141, b"")


def test_interrupt_stops_within_a_step_and_leaves_the_terminals_line(spawn: Spawn, tmp_path: Path) -> None:
    """On a terminal the progress bar is drawn, and the message stands on a line of its own."""
    terminal, theirs = os.openpty()
    fcntl.ioctl(theirs, termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    process = spawn("generate", "a", *LONG, "--out", tmp_path / "new", stderr=theirs)
    os.close(theirs)
    seen = b""
    while not re.search(rb" [1-9]\d*/1000 ", seen):
        seen += os.read(terminal, 4096)
    sent = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=60)
    seen += os.read(terminal, 65536)
    os.close(terminal)
    assert (process.returncode, out) == (130, b"")
    assert time.monotonic() - sent < 5
    assert b"flashjanus: loading shapes" in seen
    assert seen.endswith(b"\nflashjanus: interrupted; no image was saved\r\n")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_an_interrupted_run_leaves_whole_files_and_says_how_to_go_on(
    spawn: Spawn, tmp_path: Path, number: signal.Signals
) -> None:
    command = ["generate", "a circle", "--num-images", "600", "--steps", "1", "--seed", "3", "--out", tmp_path]
    process = spawn(*command, bufsize=0)  # else readline takes more than a line, which communicate does not give back
    first = process.stdout.readline()
    process.send_signal(number)
    rest, err = process.communicate(timeout=120)
    paths = (first + rest).decode().split()
    assert process.returncode == 128 + number
    assert re.fullmatch(
        rf"flashjanus: interrupted; (\d+) of 600 images were saved in {tmp_path}; to continue, repeat the command "
        rf"with --seed 3 --skip \1\n",
        err.decode(),
    ).group(1) == str(len(paths))
    assert paths == [f"{tmp_path / f'a-circle-{3 + n}.png'}" for n in range(len(paths))]
    assert sorted(map(str, tmp_path.iterdir())) == sorted(paths)
    for path in paths:
        Image.open(path).load()


@pytest.mark.parametrize(
    "options",
    [
        ["a", "--steps", "0"],
        ["a", "--steps", "-1"],
        ["a", "--steps", "1000000"],
        ["a", "--guidance", "nan"],
        ["a", "--guidance", "inf"],
        ["a", "--guidance", "-1"],
        ["a", "--seed", "-1"],
        ["a", "--seed", str(2**64)],
        ["a", "--num-images", "0"],
        ["a", "--num-images", "-1"],
        [""],
        [" \n"],
        ["a", ""],
        ["a " * 50_000],
        ["a", "--dtype", "float8"],
        ["a", "--dtype", "float16"],
        ["a", "--numerics", "fast"],
    ],
)
def test_bad_values_for_generate(cli, tmp_path: Path, options: list[str]) -> None:
    _is_refused(cli("generate", *options, "--out", tmp_path / "new", "--quiet", "--json"), "InputError")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    "options",
    [
        ["--max-new-tokens", "0"],
        ["--max-new-tokens", "-5"],
        ["--temperature", "nan"],
        ["--temperature", "-1"],
        ["--top-p", "2"],
        ["--top-p", "nan"],
        ["--top-k", "-2"],
        ["--repetition-penalty", "0"],
        ["--seed", "-1"],
    ],
)
def test_bad_values_for_ask(cli, image: Path, options: list[str]) -> None:
    _is_refused(cli("ask", image, "q", *options, "--quiet", "--json"), "InputError")


def test_bad_models(cli, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    (tmp_path / "broken").mkdir()
    (tmp_path / "broken" / "config.json").write_text("[1, 2")
    for name, kind in (("absent", "CheckpointError"), ("empty", "CheckpointError"), ("broken", "ConfigError")):
        result = cli("generate", "a", "--model", tmp_path / name, "--out", tmp_path / "new", "--json")
        _is_refused(result, kind)
        assert str(tmp_path / name) in result.json["error"]["message"]
    assert not (tmp_path / "new").exists()


def test_absent_device(cli, tmp_path: Path) -> None:
    _is_refused(cli("generate", "a", "--device", "abacus", "--out", tmp_path, "--json"), "DeviceError")


def test_inspect(cli) -> None:
    result = cli("inspect", "shapes")
    assert (result.code, result.err) == (0, "")
    assert "language model" in result.out
    value = cli("inspect", "shapes", "--json").json
    assert value["problems"] == []
    assert value["model_type"] == "multi_modality"


def test_plan_offers_every_program() -> None:
    assert tuple(JanusFlow.from_pretrained("shapes").runner._builders) == PROGRAMS


def test_plan(cli) -> None:
    plans = cli("plan", "--program", "all", "--steps", "3", "--prompt-tokens", "8", "--json").json["plans"]
    assert list(plans) == list(PROGRAMS)
    for program, plan in plans.items():
        assert "_".join(filter(None, (plan["program"], plan["form"]))) == program
        assert plan["nodes"]
    table = cli("plan", "--program", "flow_step", "--why").out
    assert table.startswith("flow_step on cpu ")
    assert "\n\n" in table
    assert "flow_update: " in table


@pytest.mark.parametrize("option", ["--rows", "--prompt-tokens", "--steps"])
def test_plan_of_an_impossible_bucket(cli, option: str) -> None:
    for value in ("0", "-1"):
        _is_refused(cli("plan", option, value, "--quiet", "--json"), "InputError")


def _is_refused(result, kind: str) -> None:
    """Exit code 2, the typed error in JSON, and its one line on stderr with no traceback."""
    assert result.code == 2
    assert result.json["error"]["type"] == kind
    assert result.err.splitlines()[-1].startswith("flashjanus: error: ")
    assert "Traceback" not in result.err
