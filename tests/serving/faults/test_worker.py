"""The engine's process is killed while the server serves: its requests are told so, and the next ones are served."""

from __future__ import annotations

import asyncio
import os
import signal
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from flashjanus.scheduling import Limits
from flashjanus.serving import AsyncEngine, ProcessBackend
from serving_app import SECONDS, Served, served
from serving_clients import CHAT, IMAGES, LONG, SHORT

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Is a circle round?"}], "temperature": 0}


@pytest.fixture(scope="module")
def mortal() -> Iterator[Served]:
    backend = ProcessBackend("shapes", dtype="float32", limits=Limits(images=2, answers=2), backoff=0.01)
    with served(engine=AsyncEngine(backend), drain=1.0) as one:
        yield one


def kill(server: Served) -> None:
    child = server.engine.backend._child  # type: ignore[attr-defined]
    assert child is not None
    os.kill(child.process.pid, signal.SIGKILL)


async def until_ready(web: httpx.AsyncClient, status: int) -> httpx.Response:
    for _ in range(SECONDS * 50):
        reply = await web.get("/health/ready")
        if reply.status_code == status:
            return reply
        await asyncio.sleep(0.02)
    raise AssertionError(f"/health/ready does not become {status}")


async def until_begun(server: Served) -> None:
    """Until two images are drawn, and others wait."""
    for _ in range(SECONDS * 50):
        stats = server.engine.stats()
        if stats.image_rows == 2 and stats.queued >= 2:
            return
        await asyncio.sleep(0.02)
    raise AssertionError(f"expected two rows and a queue, got {server.engine.stats()}")


def test_a_worker_that_is_killed_is_told_of_and_started_again(mortal: Served) -> None:
    """Ready goes down and up; the server is live all the time."""
    bodies = [{**LONG, "stream": number % 2 == 0, "seed": number} for number in range(4)]

    async def work() -> None:
        async with httpx.AsyncClient(base_url=mortal.url, timeout=SECONDS) as web:
            before = (await web.post(IMAGES, json=SHORT)).json()["data"]
            asked = [asyncio.ensure_future(web.post(IMAGES, json=body)) for body in bodies]
            await until_begun(mortal)
            kill(mortal)
            for body, reply in zip(bodies, await asyncio.gather(*asked), strict=True):
                assert reply.status_code == (200 if body["stream"] else 503)
                for words in ('"unavailable"', "SIGKILL", "send it again"):
                    assert words in reply.text
                assert body["stream"] or int(reply.headers["retry-after"]) > 0
            await until_ready(web, 503)
            for path in ("/health/live", "/v1/models", "/metrics"):
                assert (await web.get(path)).status_code == 200
            refused = await web.post(IMAGES, json=SHORT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")
            assert int(refused.headers["retry-after"]) > 0
            await until_ready(web, 200)
            assert (await web.post(IMAGES, json=SHORT)).json()["data"] == before
            assert (await web.post(CHAT, json=QUESTION)).status_code == 200

    asyncio.run(asyncio.wait_for(work(), 3 * SECONDS))


def test_an_abort_reaches_the_worker(mortal: Served) -> None:
    async def work() -> None:
        async with httpx.AsyncClient(base_url=mortal.url, timeout=SECONDS) as web:
            await until_ready(web, 200)
            async with web.stream("POST", IMAGES, json={**LONG, "n": 2}) as reply:
                assert reply.status_code == 200
            for _ in range(SECONDS * 50):
                stats = mortal.engine.stats()
                if not (stats.image_rows or stats.queued or mortal.engine.backend._running):  # type: ignore[attr-defined]
                    break
                await asyncio.sleep(0.02)
            else:
                raise AssertionError(f"the worker still draws: {stats}")
            assert (await web.post(IMAGES, json=SHORT)).status_code == 200

    asyncio.run(asyncio.wait_for(work(), 2 * SECONDS))
