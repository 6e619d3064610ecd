"""/metrics, /docs and the description: what a server tells of itself."""

from __future__ import annotations

import asyncio
import re
from typing import Any

import httpx
from flashjanus.serving import AsyncEngine
from flashjanus.serving.http import create_app
from prometheus_client.parser import text_string_to_metric_families
from serving_app import SECONDS, client, model

IMAGES, CHAT = "/v1/images/generations", "/v1/chat/completions"
DRAW: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 3}
ASK: dict[str, Any] = {"messages": [{"role": "user", "content": "Is a circle round?"}], "temperature": 0}


def figures(text: str) -> dict[tuple[str, ...], float]:
    """By name and values of labels."""
    found = {}
    for family in text_string_to_metric_families(text):
        for one in family.samples:
            found[(one.name, *one.labels.values())] = one.value
    return found


def test_figures_count_what_happens() -> None:
    async def asked() -> tuple[list[Any], str]:
        engine = AsyncEngine(model())
        transport = httpx.ASGITransport(create_app(engine))
        async with engine, httpx.AsyncClient(transport=transport, base_url="http://server") as one:
            replies = [
                await one.post(IMAGES, json={**DRAW, "n": 2}),
                await one.post(IMAGES, json={**DRAW, "stream": True, "partial_images": 1}),
                await one.post(CHAT, json=ASK),
                await one.post(CHAT, json=ASK),
                await one.post(IMAGES, json={**DRAW, "foo": 1}),
                await one.post("/v1/invented/by/a/client", json={}),
            ]
            tokens = sum(reply.json()["usage"]["completion_tokens"] for reply in replies[2:4])
            while (stats := engine.stats()).images < 3 or stats.tokens < tokens:  # which come a moment later
                await asyncio.sleep(0.02)
            text = (await one.get("/metrics")).text
            return replies, text

    replies, text = asyncio.run(asyncio.wait_for(asked(), SECONDS))
    found = figures(text)
    tokens = sum(reply.json()["usage"]["completion_tokens"] for reply in replies[2:4])
    assert found[("flashjanus_images_total",)] == 3
    assert found[("flashjanus_tokens_total",)] == tokens
    assert found[("flashjanus_ready",)] == 1
    assert found[("flashjanus_queued_requests",)] == 0
    assert found[("flashjanus_live_rows", "image")] == found[("flashjanus_live_rows", "answer")] == 0
    assert found[("flashjanus_turns_total", "evaluation")] >= 6
    assert found[("flashjanus_turn_seconds_total", "tokens")] > 0
    assert found[("flashjanus_prefix_hits_total", "prompts")] >= 1
    assert found[("flashjanus_requests_total", IMAGES, "200")] == 2
    assert found[("flashjanus_requests_total", CHAT, "200")] == 2
    assert found[("flashjanus_requests_total", "other", "404")] == 1
    assert found[("flashjanus_refusals_total", "unknown_parameter")] == 1
    assert found[("flashjanus_time_to_image_seconds_count",)] == 2
    assert found[("flashjanus_time_to_first_partial_image_seconds_count",)] == 1
    assert found[("flashjanus_time_to_first_token_seconds_count",)] == 2
    assert found[("flashjanus_admission_seconds_count",)] == 4
    assert found[("flashjanus_request_seconds_count", IMAGES)] == 2
    assert found[("flashjanus_cancellations_total",)] == 0


def test_two_applications_count_apart() -> None:
    async def asked() -> list[str]:
        async with client() as one, client() as other:
            await one.post(CHAT, json=ASK)
            return [(await each.get("/metrics")).text for each in (one, other)]

    counted, none = map(figures, asyncio.run(asked()))
    assert counted[("flashjanus_requests_total", CHAT, "200")] == 1
    assert ("flashjanus_requests_total", CHAT, "200") not in none


def test_the_description_is_whole_and_its_page_needs_no_network() -> None:
    async def asked() -> tuple[Any, str]:
        async with client() as one:
            return (await one.get("/openapi.json")).json(), (await one.get("/docs")).text

    described, page = asyncio.run(asked())
    text = str(described)
    named = set(re.findall(r"#/components/schemas/(\w+)", text))
    assert named <= set(described["components"]["schemas"])
    assert {IMAGES, CHAT, "/v1/models", "/health/ready", "/metrics"} <= set(described["paths"])
    whole = described["components"]["schemas"]["ImageBody"]["properties"]["n"]["anyOf"][0]
    assert (whole["minimum"], whole["maximum"]) == (1, 10)
    assert "HTTPValidationError" not in text  # no request fails so
    assert described["paths"]["/v1/models/{model}"]["get"]["parameters"][0]["name"] == "model"
    for name in ("num_inference_steps", "guidance_scale", "max_completion_tokens", "include_usage"):
        assert f"<code>{name}</code>" in page
    assert "<script" not in page
    assert not re.findall(r"(?:src|href)=['\"](?:https?:)?//", page)
    for name in re.findall(r"href='#(\w+)'", page):
        assert f"id='{name}'" in page
