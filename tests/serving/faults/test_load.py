"""Many requests of all kinds at once, and one after another: all are answered, each its own, and nothing is kept."""

from __future__ import annotations

import asyncio
import os
import random
from collections import Counter
from typing import Any

import httpx
import pytest
from flashjanus.measure.bench.serving.contents import BUILT_IN
from flashjanus.measure.bench.serving.drive import closed_loop
from flashjanus.measure.bench.serving.endpoint import Client, Target
from flashjanus.measure.bench.serving.load import Call, calls
from flashjanus.measure.bench.serving.serve_report import ServeReport
from flashjanus.scheduling import Limits
from serving_app import Served, served
from serving_clients import CHAT, IMAGES, held, objects, resident, until_idle

MIX = {"image": 0.4, "chat": 0.3, "vision": 0.3}
CONCURRENT = 200
REQUESTS = int(os.environ.get("FLASHJANUS_REQUESTS", "2000"))
SETTLED = 0.3
"""Share of the requests after which memory is taken to be what serving needs."""
GROWTH = 0.02
MINUTES = 25
LIMITS = Limits(images=16, answers=16, queued=CONCURRENT, prefix_bytes=4 << 20)
OPTIONS: dict[str, dict[str, Any]] = {
    "image": {"num_inference_steps": 4},
    "chat": {"temperature": 1.5, "seed": 3},
}


def target(server: Served) -> Target:
    return Target(
        base_url=f"{server.url}/v1", model="shapes", partial_images=1, max_tokens=16, timeout=600.0, options=OPTIONS
    )


@pytest.mark.long
def test_two_hundred_concurrent_requests_are_answered_each_its_own() -> None:
    fixed = [
        (IMAGES, {"prompt": f"a circle and {n} squares", "num_inference_steps": 3 + n, "seed": n}) for n in range(8)
    ]
    question = [{"role": "user", "content": "Is a circle round?"}]
    fixed += [(CHAT, {"messages": question, "temperature": 2, "seed": n, "max_tokens": 4 + n}) for n in range(8)]

    async def answers(web: httpx.AsyncClient) -> list[Any]:
        replies = await asyncio.gather(*(web.post(path, json=body) for path, body in fixed))
        found = [reply.json() for reply in replies]
        assert {reply.status_code for reply in replies} == {200}, found
        return [one["data"] if "data" in one else one["choices"] for one in found]

    async def work(server: Served) -> tuple[list[Any], list[Any], list[Any]]:
        load = calls(MIX, BUILT_IN, 1, [None] * CONCURRENT)
        async with Client(target(server)) as client, httpx.AsyncClient(base_url=server.url, timeout=600) as web:
            alone = await answers(web)
            samples = asyncio.ensure_future(closed_loop(client, load, CONCURRENT, lambda _: None))
            await asyncio.sleep(0.2)
            beside = await answers(web)
            return alone, beside, await samples

    with served(Limits(images=16, answers=16, queued=2 * CONCURRENT)) as server:
        alone, beside, samples = asyncio.run(asyncio.wait_for(work(server), 60 * MINUTES))
        until_idle(server)
        print(ServeReport({"endpoint": server.url, "model": "shapes", "load": f"{CONCURRENT} at once"}, samples, {}))
    assert beside == alone
    assert Counter(sample.error for sample in samples) == {None: CONCURRENT}
    assert all(sample.images == 1 for sample in samples if sample.kind == "image")
    assert all(sample.tokens > 0 for sample in samples if sample.kind != "image")


@pytest.mark.long
def test_thousands_of_requests_of_which_a_quarter_is_aborted_leave_nothing() -> None:
    async def aborted(web: httpx.AsyncClient, client: Client, call: Call, after: int) -> None:
        path = IMAGES if call.kind == "image" else CHAT
        async with web.stream("POST", path, json=client.target.body(call)) as reply:
            assert reply.status_code == 200
            async for _ in reply.aiter_raw():
                after -= 1
                if after < 0:
                    return

    async def work(server: Served, settled: list[int]) -> Counter[str]:
        draw, ended = random.Random(2), Counter[str]()
        load = iter(calls(MIX, BUILT_IN, 2, [None] * REQUESTS))

        async def worker() -> None:
            for call in load:
                if draw.random() < 0.25:
                    await aborted(web, client, call, draw.randrange(2))
                    ended["aborted"] += 1
                else:
                    sample = await client.send(call)
                    assert sample.error is None, sample
                    ended[call.kind] += 1
                if ended.total() == int(SETTLED * REQUESTS):
                    settled.append(resident())

        async with Client(target(server)) as client, httpx.AsyncClient(base_url=server.url, timeout=600) as web:
            await asyncio.gather(*(worker() for _ in range(12)))
        return ended

    others = objects()
    with served(LIMITS) as server:
        settled = list[int]()
        ended = asyncio.run(asyncio.wait_for(work(server, settled), 60 * MINUTES))
        until_idle(server)
        [before], after = settled, resident()
        print(
            f"{dict(ended)}; {before / 2**20:.1f} MiB after {SETTLED:.0%} of {REQUESTS}, {after / 2**20:.1f} at the end"
        )
        assert held(server) == {}
        assert server.engine.stats().prefix_bytes <= 4 << 20
    assert objects() == others
    assert ended.total() == REQUESTS
    assert 0.2 < ended["aborted"] / REQUESTS < 0.3
    assert after < (1 + GROWTH) * before
