"""The README's samples that need no download run as they are written."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from flashjanus import JanusFlow
from flashjanus.engine.ops.__main__ import table

README = Path(__file__).resolve().parents[1] / "README.md"
TEXT = README.read_text(encoding="utf-8")
SAMPLES = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
OURS = [sample for sample in SAMPLES if 'from_pretrained("shapes")' in sample]


def test_there_is_a_sample() -> None:
    assert OURS


@pytest.mark.parametrize("sample", OURS, ids=range(len(OURS)))
def test_a_sample_runs(sample: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    names: dict[str, object] = {}
    exec(compile(sample, README.name, "exec"), names)
    assert isinstance(names["model"], JanusFlow)


def test_the_server_is_started_asked_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command, the curl and the sample that are there; only PATH and the port are others."""
    monkeypatch.chdir(tmp_path)
    section = re.split(r"^## ", TEXT, flags=re.MULTILINE)[
        [*re.findall(r"^## (.*)$", TEXT, re.MULTILINE)].index("Serve it") + 1
    ]
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^    (.*)$", section, re.MULTILINE)]
    [serve] = [words[1:] for words in commands if words[0] == "flashjanus"]
    [curl] = [words for words in commands if words[0] == "curl"]
    [sample] = [sample for sample in SAMPLES if "from openai" in sample]
    serve[serve.index("PATH")] = "shapes"
    command = [sys.executable, "-m", "flashjanus", *serve, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            here = json.loads(server.stdout.readline())["url"]
            asked = [word.replace("http://127.0.0.1:8000", here) for word in curl]
            reply = subprocess.run(asked, capture_output=True, timeout=60, check=True)
            assert json.loads(reply.stdout)["data"][0]["seed"] == 1
            exec(compile(sample.replace("http://127.0.0.1:8000", here), README.name, "exec"), {})
            assert (tmp_path / "circle.png").stat().st_size > 0
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()


def test_the_table_of_kernels_is_the_registry_s() -> None:
    """An op that is new may be left out of it until somebody prints it again."""
    found = re.search(r"^\| op \|.*?(?=\n\n)", TEXT, re.MULTILINE | re.DOTALL)
    assert found is not None
    lines = table().splitlines()
    printed = [line for line in lines if line in found[0].splitlines()]
    assert found[0].splitlines() == printed, (
        "run `python -m flashjanus.engine.ops` and put what it prints into the README"
    )
    assert len(printed) > 20
