"""Clients that leave: their requests end, all others go on, and nothing is kept of them."""

from __future__ import annotations

import asyncio
import random
import time
from typing import Any

import httpx
import pytest
from flashjanus.scheduling import Limits
from serving_app import SECONDS, Served, served
from serving_clients import CHAT, IMAGES, LONG, SHORT, Raw, held, objects, resident, until_drawn, until_idle

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Is a circle round?"}], "temperature": 0}
ABORTS, SETTLED = 300, 100
GROWTH = 0.02


def begun(connection: Raw, asked: dict[str, Any] = LONG, path: str = IMAGES) -> None:
    """Until the request has been accepted."""
    connection.post(path, asked)
    assert b" 200 " in connection.until(b"\r\n\r\n")


def abort(server: Served, draw: random.Random) -> None:
    """Leave images at some moment of their drawing."""
    with Raw(server) as one:
        begun(one, {**LONG, "prompt": f"a red circle and {draw.randrange(5)} squares", "n": 2, "partial_images": 3})
        until_drawn(server, draw.randint(0, 1))
    until_idle(server)


def test_nothing_is_kept_of_aborted_images(server: Served) -> None:
    draw, before = random.Random(1), objects()
    for _ in range(10):
        abort(server, draw)
    assert objects() == before


@pytest.mark.long
def test_memory_does_not_grow_with_aborted_images(server: Served) -> None:
    draw, before = random.Random(2), objects()
    for _ in range(SETTLED):
        abort(server, draw)
    settled = resident()
    for _ in range(ABORTS - SETTLED):
        abort(server, draw)
    print(f"{settled / 2**20:.1f} MiB after {SETTLED} aborts, {resident() / 2**20:.1f} after {ABORTS}")
    assert objects() == before
    assert resident() < (1 + GROWTH) * settled


@pytest.mark.parametrize("stream", [True, False])
def test_what_a_client_that_left_asked_for_is_not_made(server: Served, stream: bool) -> None:
    before = server.engine.stats().images
    with Raw(server) as one:
        one.post(IMAGES, {**LONG, "stream": stream})
        until_drawn(server, 2)
    until_idle(server)
    assert server.engine.stats().images == before


def test_an_answer_that_a_client_left_is_not_written(server: Served) -> None:
    with Raw(server) as one:
        begun(one, {**QUESTION, "n": 4, "max_tokens": 400, "temperature": 2, "stream": True}, CHAT)
    until_idle(server)


def test_what_a_client_that_left_asked_for_reaches_no_other(server: Served, web: httpx.Client) -> None:
    with Raw(server) as gone:
        begun(gone, {**LONG, "seed": 1})
    with Raw(server) as gone:
        begun(gone, {**SHORT, "seed": 2, "stream": True})
    replies = [web.post(IMAGES, json={**SHORT, "seed": seed}).json() for seed in (3, 4)]
    assert [[one["seed"] for one in reply["data"]] for reply in replies] == [[3], [4]]


def test_one_abort_does_not_end_others_later(server: Served, web: httpx.Client) -> None:
    due = [web.post(IMAGES, json={**SHORT, "seed": seed, "num_inference_steps": 12}).json() for seed in range(3)]

    async def rounds() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=SECONDS) as client:
            for turn in range(2):
                asked = [{**SHORT, "seed": seed, "num_inference_steps": 12} for seed in range(3)]
                others = [asyncio.ensure_future(client.post(IMAGES, json=one)) for one in asked]
                with Raw(server) as gone:
                    await asyncio.to_thread(begun, gone, {**LONG, "seed": turn})
                    await asyncio.to_thread(until_drawn, server, turn)
                replies = [one.json() for one in await asyncio.gather(*others)]
                assert [one["data"] for one in replies] == [one["data"] for one in due]

    asyncio.run(asyncio.wait_for(rounds(), SECONDS))


@pytest.mark.parametrize("begins", [True, False])
def test_a_cancelled_request_does_not_block_the_next(begins: bool) -> None:
    """Of two places in the queue: one that runs, or one that waits, and its client leaves."""
    with served(Limits(images=1, queued=8), drain=1.0) as server, Raw(server) as first:
        begun(first)
        until_drawn(server, 1)
        with Raw(server) as second:
            begun(second)
            if begins:
                first.reset()
        if not begins:
            first.reset()
        reply = httpx.post(f"{server.url}{IMAGES}", json=SHORT, timeout=SECONDS)
        assert reply.status_code == 200
        until_idle(server)


def test_aborts_at_any_moment_do_not_hang_the_server(server: Served, web: httpx.Client) -> None:
    draw = random.Random(2)
    for _ in range(20):
        asked, path = draw.choice([(LONG, IMAGES), ({**QUESTION, "stream": True}, CHAT), (SHORT, IMAGES)])
        with Raw(server) as one:
            one.post(path, asked)
            time.sleep(draw.random() / 30)
        assert web.get("/health/live").status_code == 200
    assert web.get("/health/ready").status_code == 200
    assert web.post(IMAGES, json=SHORT).status_code == 200


def test_the_server_ends_while_clients_leave() -> None:
    with served(Limits(images=2), drain=0.2) as server:
        connections = [Raw(server) for _ in range(6)]
        for one in connections:
            one.post(IMAGES, LONG)
        until_drawn(server, 2)
        assert held(server)
        for one in connections[::2]:
            one.reset()
    for one in connections[1::2]:
        assert b"unavailable" in one.until(b"unavailable")
        one.reset()


def test_a_client_that_left_is_counted_as_such(server: Served, web: httpx.Client) -> None:
    def gone() -> float:
        lines = web.get("/metrics").text.splitlines()
        return next(float(line.split()[1]) for line in lines if line.startswith("flashjanus_cancellations_total"))

    before, end = gone(), time.monotonic() + SECONDS
    with Raw(server) as one:
        begun(one)
    while gone() == before:
        assert time.monotonic() < end
        time.sleep(0.02)
    assert gone() == before + 1
