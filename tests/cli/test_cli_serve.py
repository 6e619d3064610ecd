"""`flashjanus serve`: starts, serves, drains and ends; options are those of the settings."""

from __future__ import annotations

import asyncio
import json
import re
import signal
import socket
import sys
from pathlib import Path
from typing import Any

import httpx
import pytest
from flashjanus.cli import serve
from flashjanus.cli.app import build_parser
from flashjanus.cli.console import Console
from flashjanus.cli.serve import LIMITS, settings_of
from flashjanus.errors import CheckpointError
from flashjanus.serving import AsyncEngine
from flashjanus.serving.http import Settings
from flashjanus.serving.http.run import bound
from serving_app import Told

SECONDS = 90


@pytest.mark.parametrize(("number", "options"), [(signal.SIGTERM, []), (signal.SIGINT, ["--in-process"])])
def test_it_serves_until_it_is_told_to_stop_and_finishes_what_runs(spawn: Any, number: int, options: list[str]) -> None:
    process = spawn("serve", "--port", "0", "--json", "--served-name", "mine", *options)
    said = json.loads(process.stdout.readline())
    assert said["model"] == "shapes"
    with httpx.Client(base_url=said["url"], timeout=SECONDS) as web:
        assert web.get("/v1/models", headers={"host": "evil.example"}).status_code == 403
        assert [one["id"] for one in web.get("/v1/models").json()["data"]] == ["mine", "shapes"]
        body = {"prompt": "a red circle", "model": "mine", "stream": True, "partial_images": 3, "n": 4}
        with web.stream("POST", "/v1/images/generations", json=body) as reply:
            events = (line for line in reply.iter_lines() if line.startswith("event: "))
            assert next(events) == "event: image_generation.partial_image"
            process.send_signal(number)
            assert [*events][-4:] == ["event: image_generation.completed"] * 4
    out, err = process.communicate(timeout=SECONDS)
    assert (process.returncode, out) == (0, b"")
    lines = [json.loads(line) for line in err.splitlines() if line.startswith(b"{")]
    assert [one["status"] for one in lines if one["message"] == "request"] == [403, 200, 200]
    assert any(one["message"] == "draining" for one in lines)
    loading, ready = [one["message"] for one in lines if one["logger"].startswith("flashjanus.serving")][:2]
    assert loading == "loading shapes"
    assert re.fullmatch(r"shapes is ready after \d+\.\d s of loading", ready)
    assert b"Traceback" not in err


def test_an_engine_that_cannot_start_ends_the_server() -> None:
    waits = []

    def wait(seconds: float) -> bool:
        waits.append(seconds)
        if len(waits) == 3:
            raise CheckpointError("there is no model in /none")
        return False

    with bound("127.0.0.1", 0) as listening:
        console = Console(json=False, quiet=True)
        serving = serve.serve_until_stopped(AsyncEngine(Told()), wait, Settings(), listening, console)
        with pytest.raises(CheckpointError, match="/none"):
            asyncio.run(asyncio.wait_for(serving, SECONDS))


def test_a_port_that_is_taken_is_said(cli: Any) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        out = cli("serve", "--port", str(taken.getsockname()[1]))
    assert out.code == 2
    assert "cannot listen on 127.0.0.1" in out.err


def test_a_missing_extra_is_said(cli: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in [name for name in sys.modules if name.startswith("flashjanus.serving.http")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    monkeypatch.setitem(sys.modules, "fastapi", None)
    out = cli("serve")
    assert out.code == 2
    assert 'pip install "flashjanus[server]"' in out.err


def test_defaults_are_those_of_the_settings() -> None:
    settings = Settings()
    assert {name: default for name, _, default, _ in LIMITS} == {
        name: getattr(settings, name) for name, _, _, _ in LIMITS
    }
    assert settings_of(build_parser().parse_args(["serve"])) == settings


def test_options_become_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "keys").write_text("sk-file\n")
    monkeypatch.setenv("FLASHJANUS_API_KEYS", "sk-env")
    given = [
        "serve", "--api-keys", str(tmp_path / "keys"), "--served-name", "a", "--served-name", "b", "--drain", "2.5",
        "--max-side", "512", "--allow-images-from", "images.example", "--rough-previews", "--log-prompts",
        "--allow-origin", "*", "--requests-per-key", "3", "--preset", "fast",
    ]  # fmt: skip
    assert settings_of(build_parser().parse_args(given)) == Settings(
        keys=("sk-env", "sk-file"), names=("a", "b"), drain=2.5, max_side=512, remote_hosts=("images.example",),
        full_previews=False, log_prompts=True, origins=("*",), key_requests=3, preset="fast",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("options", "named"),
    [
        (["--drain", "-1"], "--drain"),
        (["--deadline", "nan"], "--deadline"),
        (["--max-side", "0"], "--max-side"),
        (["--queue", "x"], "--queue"),
        (["--port", "70000"], "--port"),
        (["--port", "-1"], "--port"),
        (["--host", "no such host"], "listen"),
        (["--api-keys", "/none"], "API keys"),
        (["--model", "/none", "--in-process"], "/none"),
        (["--threads", "0"], "--threads"),
    ],
)
def test_options_that_are_wrong(cli: Any, monkeypatch: pytest.MonkeyPatch, options: list[str], named: str) -> None:
    monkeypatch.setattr(serve, "serve_until_stopped", None)  # which would go on for ever
    out = cli("serve", "--port", "0", *options)
    assert out.code == 2
    assert named in out.err
