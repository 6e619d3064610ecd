"""What fails in the engine fails the requests that it concerns, with an error that says what to do; others go on."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Callable, Coroutine
from dataclasses import replace
from typing import Any

import httpx
import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.errors import OutOfMemoryError
from flashjanus.execution.flow import FlowSession, Prepared
from flashjanus.execution.text import TextSession
from flashjanus.execution.text_rows import DecodeSession
from flashjanus.scheduling.scheduler import Scheduler
from serving_app import SECONDS, Served, model, served
from serving_clients import CHAT, IMAGES, SHORT, Raw, until_drawn

BUSY: dict[str, Any] = {"prompt": "a blue square", "num_inference_steps": 1000, "seed": 1, "stream": True}
SESSIONS = {IMAGES: (Prepared, FlowSession), CHAT: (TextSession, DecodeSession)}
BOTH = pytest.mark.parametrize("path", [IMAGES, CHAT])
POISON = "a circle that is not finite"


def asked(path: str, words: str, **fields: Any) -> dict[str, Any]:
    """A request about words that no other test has: what was prepared for them is kept."""
    if path == IMAGES:
        return {**SHORT, "prompt": f"a red circle, {words}", **fields}
    return {"messages": [{"role": "user", "content": f"Is a circle round, {words}?"}], "temperature": 0, **fields}


def content(reply: httpx.Response) -> Any:
    """What a reply holds of images or answers."""
    assert reply.status_code == 200, reply.text
    found = reply.json()
    return found["data"] if "data" in found else [one["message"] for one in found["choices"]]


def assert_no_memory(reply: httpx.Response) -> None:
    assert (reply.status_code, reply.json()["error"]["code"]) == (503, "out_of_memory")
    assert int(reply.headers["retry-after"]) > 0


def run(server: Served, work: Callable[[httpx.AsyncClient], Coroutine[Any, Any, None]]) -> None:
    async def whole() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=SECONDS) as web:
            await work(web)

    asyncio.run(asyncio.wait_for(whole(), SECONDS))


def scarce(patch: pytest.MonkeyPatch, refused: Callable[[Any], bool]) -> list[Any]:
    """Memory that the model is refused where `refused(kind of session)`; what it was refused for."""
    taken, refusals = model().runner.take, list[Any]()

    def take(make: Any, *bucket: Any) -> Any:
        if refused(make):
            refusals.append(make)
            raise OutOfMemoryError("expected memory, got none")
        return taken(make, *bucket)

    patch.setattr(model().runner, "take", take)
    return refusals


def failing_once(patch: pytest.MonkeyPatch, kind: Any, error: BaseException) -> None:
    """The next step of all sessions of a kind raises."""
    before, left = kind.step, [error]

    def step(self: Any) -> Any:
        if left:
            raise left.pop()
        return before(self)

    patch.setattr(kind, "step", step)


@BOTH
def test_a_second_request_without_memory_waits_for_the_first(
    server: Served, monkeypatch: pytest.MonkeyPatch, path: str
) -> None:
    first_runs, first = threading.Event(), Raw(server)
    first_runs.set()
    refusals = scarce(monkeypatch, lambda make: make is SESSIONS[path][0] and first_runs.is_set())

    async def work(web: httpx.AsyncClient) -> None:
        second = asyncio.ensure_future(web.post(path, json=asked(path, "and second")))
        while not refusals:
            await asyncio.sleep(0.01)
        assert not second.done()
        first_runs.clear()
        first.reset()
        again = await web.post(path, json=asked(path, "and second"))
        assert content(await second) == content(again)

    with first:
        first_runs.clear()
        first.post(IMAGES, BUSY)
        until_drawn(server, 2)
        first_runs.set()
        run(server, work)
    assert len(refusals) == 1


@BOTH
@pytest.mark.parametrize("session", [0, 1])
def test_a_request_that_there_is_no_memory_for_is_told_so(
    server: Served, monkeypatch: pytest.MonkeyPatch, path: str, session: int
) -> None:
    """At admission, and where its rows are to join."""

    async def work(web: httpx.AsyncClient) -> None:
        body = asked(path, f"and alone {session}")
        with monkeypatch.context() as patch:
            assert scarce(patch, lambda make: make is SESSIONS[path][session]) == []
            assert_no_memory(await web.post(path, json=body))
            streamed = await web.post(path, json={**body, "stream": True})
            assert "out_of_memory" in streamed.text
        assert content(await web.post(path, json=body))

    run(server, work)


@pytest.mark.parametrize("error", [torch.OutOfMemoryError("planted"), MemoryError("planted")])
@BOTH
def test_memory_that_ends_inside_a_step_fails_those_in_it_and_the_others_go_on(
    server: Served, monkeypatch: pytest.MonkeyPatch, path: str, error: BaseException
) -> None:
    other = CHAT if path == IMAGES else IMAGES

    async def work(web: httpx.AsyncClient) -> None:
        bodies = [(path, asked(path, "and one")), (path, asked(path, "and two")), (other, asked(other, "and three"))]
        due = [content(await web.post(where, json=body)) for where, body in bodies]
        with monkeypatch.context() as patch:
            failing_once(patch, SESSIONS[path][1], error)
            replies = await asyncio.gather(*(web.post(where, json=body) for where, body in bodies))
        failed = [number for number, reply in enumerate(replies) if reply.status_code != 200]
        assert failed
        assert set(failed) <= {0, 1}
        for number, reply in enumerate(replies):
            assert_no_memory(reply) if number in failed else None
            assert number in failed or content(reply) == due[number]
        assert [content(await web.post(where, json=body)) for where, body in bodies] == due

    run(server, work)


def test_a_fault_inside_a_step_is_told_without_its_cause(server: Served, monkeypatch: pytest.MonkeyPatch) -> None:
    async def work(web: httpx.AsyncClient) -> None:
        with monkeypatch.context() as patch:
            failing_once(patch, FlowSession, ValueError("a secret"))
            reply = await web.post(IMAGES, json=asked(IMAGES, "and broken"))
        assert (reply.status_code, reply.json()["error"]["code"]) == (500, "internal_error")
        assert "secret" not in reply.text
        assert "Traceback" not in reply.text
        assert content(await web.post(IMAGES, json=asked(IMAGES, "and broken")))

    run(server, work)


def test_a_row_that_is_not_finite_fails_and_its_neighbors_do_not(
    server: Served, monkeypatch: pytest.MonkeyPatch
) -> None:
    made = JanusFlow.image_job

    def image_job(self: JanusFlow, prompt: str, **options: Any) -> Any:
        job = made(self, prompt, **options)
        if prompt != POISON:
            return job
        return replace(job, rows=tuple(replace(row, noise=torch.full_like(row.noise, 3e38)) for row in job.rows))

    async def work(web: httpx.AsyncClient) -> None:
        neighbors = [asked(IMAGES, "beside", seed=seed, num_inference_steps=8) for seed in range(2)]
        due = [content(await web.post(IMAGES, json=body)) for body in neighbors]
        monkeypatch.setattr(JanusFlow, "image_job", image_job)
        poisoned = asked(IMAGES, "", prompt=POISON, num_inference_steps=8)
        for _ in range(3):
            bodies = [neighbors[0], poisoned, neighbors[1]]
            first, bad, last = await asyncio.gather(*(web.post(IMAGES, json=body) for body in bodies))
            assert (bad.status_code, bad.json()["error"]["code"]) == (500, "non_finite")
            assert bad.headers["x-should-retry"] == "false"
            assert [content(first), content(last)] == due

    run(server, work)


@pytest.mark.filterwarnings("ignore::pytest.PytestUnhandledThreadExceptionWarning")
def test_an_engine_that_ends_tells_all_and_is_not_ready(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(self: Scheduler) -> Any:
        raise RuntimeError("planted")

    with served(drain=1.0) as server:

        async def work(web: httpx.AsyncClient) -> None:
            assert (await web.get("/health/ready")).status_code == 200
            running = [
                asyncio.ensure_future(web.post(IMAGES, json={**BUSY, "stream": stream})) for stream in (False, True)
            ]
            await asyncio.to_thread(until_drawn, server, 2)
            monkeypatch.setattr(Scheduler, "step", end)
            whole, streamed = await asyncio.gather(*running)
            assert whole.status_code >= 500
            assert "error" in streamed.text
            assert "planted" not in whole.text + streamed.text
            assert (await web.get("/health/ready")).status_code == 503
            assert (await web.get("/health/live")).status_code == 200
            refused = await web.post(IMAGES, json=SHORT)
            assert (refused.status_code, refused.json()["error"]["code"]) == (503, "unavailable")

        run(server, work)
