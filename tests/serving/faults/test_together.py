"""Requests that are served together: each gets what is its own, whoever is beside it."""

from __future__ import annotations

import asyncio
import base64
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from flashjanus import JanusFlow
from flashjanus.scheduling import Limits
from flashjanus.serving import AsyncEngine
from serving_app import SECONDS, Served, served
from serving_clients import CHAT, IMAGES, SHORT, until_idle

QUESTION: dict[str, Any] = {"messages": [{"role": "user", "content": "Is a circle round?"}], "temperature": 0}
ASKED = {**SHORT, "num_inference_steps": 10, "seed": 7}
NEIGHBORS: list[tuple[str, dict[str, Any]]] = [
    (IMAGES, {"prompt": "a blue square", "num_inference_steps": 4, "guidance_scale": 5.0, "seed": 1}),
    (IMAGES, {"prompt": "three green triangles on black", "num_inference_steps": 17, "n": 3, "seed": 7}),
    (IMAGES, {"prompt": "a yellow circle above a red one", "num_inference_steps": 6, "solver": "ab2", "seed": 2}),
    (IMAGES, {"prompt": "a red circle", "preset": "fast", "seed": 7}),
    (IMAGES, {"prompt": "a red circle", "num_inference_steps": 5, "guidance_scale": 1.0, "seed": 3}),
    (CHAT, {**QUESTION, "temperature": 1.5, "seed": 4, "max_tokens": 30}),
    (CHAT, {**QUESTION, "n": 3, "max_tokens": 8}),
]


@pytest.fixture(scope="module")
def half() -> Iterator[Served]:
    """In bfloat16, where a sum in another order is another number."""
    engine = AsyncEngine(JanusFlow.from_pretrained("shapes", dtype="bfloat16"), Limits(images=16, answers=16))
    with served(engine=engine) as one:
        yield one


ALONE = 10 + 4 + 17 + 6 + 5
"""Evaluations of these images one after another, but for the preset's."""


def png(reply: httpx.Response) -> bytes:
    assert reply.status_code == 200, reply.text
    [one] = reply.json()["data"]
    return base64.b64decode(one["b64_json"])


def test_a_seed_gives_the_same_bytes_whatever_the_neighbors(half: Served) -> None:
    async def compared() -> None:
        async with httpx.AsyncClient(base_url=half.url, timeout=SECONDS) as web:
            alone = png(await web.post(IMAGES, json=ASKED))
            for shift in (0, 2):
                evaluations = half.engine.stats().turns["evaluation"][0]
                order = [*NEIGHBORS[shift:], *NEIGHBORS[:shift]]
                before = [asyncio.ensure_future(web.post(path, json=body)) for path, body in order[:4]]
                await asyncio.sleep(0.03 * shift)
                asked = asyncio.ensure_future(web.post(IMAGES, json=ASKED))
                await asyncio.sleep(0.03 * shift)
                after = [asyncio.ensure_future(web.post(path, json=body)) for path, body in order[4:]]
                assert png(await asked) == alone
                assert {reply.status_code for reply in await asyncio.gather(*before, *after)} == {200}
                await asyncio.to_thread(until_idle, half)
                assert half.engine.stats().turns["evaluation"][0] - evaluations < ALONE, "they were not drawn together"

    asyncio.run(asyncio.wait_for(compared(), 3 * SECONDS))


@pytest.mark.parametrize("stream", [True, False])
def test_both_of_two_concurrent_requests_are_answered(server: Served, stream: bool) -> None:
    """Alike and unlike, again and again."""
    pairs = [
        [(IMAGES, SHORT), (IMAGES, SHORT)],
        [(IMAGES, SHORT), (CHAT, QUESTION)],
        [(CHAT, QUESTION), (CHAT, QUESTION)],
        [(IMAGES, SHORT), (IMAGES, {**SHORT, "n": 2, "num_inference_steps": 1})],
    ]

    async def asked() -> None:
        async with httpx.AsyncClient(base_url=server.url, timeout=SECONDS) as web:
            for pair in pairs * 3:
                posts = [web.post(path, json={**body, "stream": stream}) for path, body in pair]
                for (path, _), reply in zip(pair, await asyncio.gather(*posts), strict=True):
                    assert reply.status_code == 200
                    if stream:
                        assert ("[DONE]" if path == CHAT else "image_generation.completed") in reply.text
                    else:
                        assert reply.json()["choices" if path == CHAT else "data"]

    asyncio.run(asyncio.wait_for(asked(), 2 * SECONDS))


def test_two_images_of_one_request_are_those_of_two(web: httpx.Client) -> None:
    both = web.post(IMAGES, json={**SHORT, "n": 2}).json()
    alone = [web.post(IMAGES, json={**SHORT, "seed": SHORT["seed"] + number}).json() for number in range(2)]
    assert both["data"] == [reply["data"][0] for reply in alone]
    assert both["data"][0]["b64_json"] != both["data"][1]["b64_json"]


def test_two_answers_of_one_request_are_those_of_two(web: httpx.Client) -> None:
    asked = {**QUESTION, "temperature": 2, "seed": 11, "max_tokens": 12}
    both = web.post(CHAT, json={**asked, "n": 2}).json()
    alone = [web.post(CHAT, json={**asked, "seed": 11 + number}).json() for number in range(2)]
    assert [one["index"] for one in both["choices"]] == [0, 1]
    assert [one["message"] for one in both["choices"]] == [reply["choices"][0]["message"] for reply in alone]
    made = [reply["usage"]["completion_tokens"] for reply in alone]
    assert both["usage"]["completion_tokens"] == sum(made)


def test_two_images_without_a_seed_differ(web: httpx.Client) -> None:
    asked = {"prompt": "a red circle", "num_inference_steps": 1}
    first, second = (web.post(IMAGES, json=asked).json()["data"][0] for _ in range(2))
    assert first["seed"] != second["seed"]
    assert first["b64_json"] != second["b64_json"]
