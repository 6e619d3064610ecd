"""The HTTP server over an engine in a process of its own: it answers while there is none, and outlives its death."""

from __future__ import annotations

import logging
import os
import re
import signal
import threading
from typing import Any

import httpx
import pytest
from asked import until
from flashjanus.serving import AsyncEngine, ProcessBackend
from serving_app import SECONDS, served

IMAGES = "/v1/images/generations"
RED = {"prompt": "a red circle", "seed": 5}


def test_a_server_outlives_its_engine(caplog: pytest.LogCaptureFixture) -> None:
    """A worker killed with three requests in progress: each gets 503, ready goes down and up, and it draws again."""
    caplog.set_level(logging.INFO)
    backend = ProcessBackend("shapes", dtype="float32", backoff=0.01, wait=False)
    answers: list[httpx.Response] = []
    with (
        served(engine=AsyncEngine(backend)) as one,
        httpx.Client(base_url=one.url, timeout=SECONDS) as client,
    ):

        def ready() -> bool:
            return bool(client.get("/health/ready").status_code == 200)

        def draw(**options: Any) -> httpx.Response:
            return httpx.post(one.url + IMAGES, json={**RED, **options}, timeout=SECONDS)

        assert client.get("/health/live").status_code == 200
        waiting = client.get("/health/ready")
        assert (waiting.status_code, waiting.json()["error"]["code"]) == (503, "loading")
        assert "loading the model" in waiting.json()["error"]["message"]
        assert draw(num_inference_steps=3).status_code == 503
        assert client.get("/metrics").status_code == 200
        until(ready)
        first = draw(num_inference_steps=3)
        assert first.status_code == 200
        drawing = [threading.Thread(target=lambda: answers.append(draw(num_inference_steps=1000))) for _ in range(3)]
        for thread in drawing:
            thread.start()
        until(lambda: backend.stats().image_rows == 3)
        assert backend._child is not None
        os.kill(backend._child.process.pid, signal.SIGKILL)
        for thread in drawing:
            thread.join(SECONDS)
        assert [answer.status_code for answer in answers] == [503] * 3
        for answer in answers:
            assert "killed by SIGKILL" in answer.json()["error"]["message"]
            assert answer.headers["x-request-id"]
        assert client.get("/health/live").status_code == 200
        until(ready)
        assert draw(num_inference_steps=3).json()["data"] == first.json()["data"]
        assert backend.stats().restarts == 1
    lines = [one.getMessage() for one in caplog.records]
    assert lines.count("loading shapes") == 2, "once for each process"
    assert len([line for line in lines if re.fullmatch(r"shapes is ready after \d+\.\d s of loading", line)]) == 2
    assert {one.fields["path"] for one in caplog.records if one.message == "request"} == {IMAGES}, "no polls"  # type: ignore[attr-defined]
