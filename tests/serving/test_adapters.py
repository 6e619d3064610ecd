"""The field `adapter` of requests: which loaded adapter draws and answers."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import httpx
import numpy as np
from flashjanus import JanusFlow
from flashjanus.serving import AsyncEngine
from flashjanus.serving.http import Settings, create_app
from serving_app import SECONDS, image_of
from small_adapter import write_adapter
from untrained_model import write_untrained_model

QUICK = {"prompt": "a red circle", "num_inference_steps": 2, "seed": 5}
ASK = {"messages": [{"role": "user", "content": "What?"}], "max_tokens": 6, "temperature": 0}


def test_requests_name_an_adapter(tmp_path: Path) -> None:
    write_untrained_model(tmp_path / "model", layers=2)
    model = JanusFlow.from_pretrained(tmp_path / "model", dtype="float32")
    write_adapter(tmp_path / "ink", model.config.language, rank=2)
    model.load_adapter(tmp_path / "ink")

    async def asked() -> list[httpx.Response]:
        async with AsyncEngine(model) as engine:
            transport = httpx.ASGITransport(create_app(engine, Settings()))
            async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=SECONDS) as web:
                images, chat = "/v1/images/generations", "/v1/chat/completions"
                bodies: list[tuple[str, dict[str, Any]]] = [
                    (images, QUICK),
                    (images, {**QUICK, "adapter": "ink"}),
                    (chat, ASK),
                    (chat, {**ASK, "adapter": "ink"}),
                    (images, {**QUICK, "adapter": "other"}),
                    (chat, {**ASK, "adapter": 3}),
                ]
                return list(await asyncio.gather(*(web.post(path, json=body) for path, body in bodies)))

    plain, drawn, said, told, *refused = asyncio.run(asked())
    for reply, adapter in ((plain, None), (drawn, "ink")):
        expected = model.generate_image(QUICK["prompt"], num_inference_steps=2, seed=5, adapter=adapter).images[0]
        shown = np.asarray(image_of(reply.json()["data"][0]["b64_json"]), np.int16)
        assert abs(shown - np.asarray(expected, np.int16)).max() <= 1
    for reply, adapter in ((said, None), (told, "ink")):
        expected_text = model.chat(ASK["messages"], max_new_tokens=6, adapter=adapter)
        assert reply.json()["choices"][0]["message"]["content"] == expected_text
    for reply in refused:
        assert (reply.status_code, reply.json()["error"]["param"]) == (400, "adapter"), reply.text
    assert "expected the name of a loaded adapter ('ink'), got 'other'" in refused[0].json()["error"]["message"]
