"""The README is short, and its server starts and answers; what it shows in Python and its table: test_docs.py,
measure/bench/test_document.py."""

from __future__ import annotations

import json
import re
import shlex
import signal
import subprocess
import sys
from pathlib import Path

import pytest

TEXT = (Path(__file__).resolve().parents[1] / "README.md").read_text(encoding="utf-8")
MOST_WORDS = 900


def test_it_is_short() -> None:
    assert len(TEXT.split()) <= MOST_WORDS


def test_its_python_has_five_lines() -> None:
    [sample] = re.findall(r"^```python\n(.*?)^```$", TEXT, re.MULTILINE | re.DOTALL)
    assert len([line for line in sample.splitlines() if line.strip()]) == 5


def test_the_server_is_started_asked_and_stopped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """By the command and the curl that are there; only the port is another."""
    monkeypatch.chdir(tmp_path)
    section = re.split(r"^## ", TEXT, flags=re.MULTILINE)[
        [*re.findall(r"^## (.*)$", TEXT, re.MULTILINE)].index("Serve it") + 1
    ]
    commands = [shlex.split(line, comments=True) for line in re.findall(r"^    (.*)$", section, re.MULTILINE)]
    [serve] = [words[1:] for words in commands if words[0] == "flashjanus"]
    [curl] = [words for words in commands if words[0] == "curl"]
    command = [sys.executable, "-m", "flashjanus", *serve, "--port", "0", "--json"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL) as server:
        try:
            assert server.stdout is not None
            here = json.loads(server.stdout.readline())["url"]
            asked = [word.replace("http://127.0.0.1:8000", here) for word in curl]
            reply = subprocess.run(asked, capture_output=True, timeout=60, check=True)
            assert json.loads(reply.stdout)["data"][0]["seed"] == 1
            server.send_signal(signal.SIGTERM)
            assert server.wait(60) == 0
        finally:
            server.kill()
