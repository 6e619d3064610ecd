"""A server of OpenAI's interface whose answers are known."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from typing import Any

from fastapi import FastAPI, Request
from fastapi.responses import JSONResponse, PlainTextResponse, Response, StreamingResponse

WORDS = ("one ", "two ", "three")


@dataclass
class Stub:
    """What it was sent, and how it misbehaves: `refuse` and `odd` by kind."""

    url: str = ""
    bodies: list[dict[str, Any]] = field(default_factory=list)
    headers: list[Any] = field(default_factory=list)
    refuse: dict[str, list[int]] = field(default_factory=dict)
    odd: dict[str, str] = field(default_factory=dict)
    models: tuple[str, ...] = ("stub",)
    wait: float = 0.002
    flying: int = 0
    most: int = 0

    async def answer(self, kind: str, request: Request) -> Response:
        body = await request.json()
        self.bodies.append(body)
        self.headers.append(request.headers)
        if self.refuse.get(kind):
            error = {"message": "the queue is full", "type": "rate_limit_error", "code": "queue_full"}
            return JSONResponse({"error": error}, self.refuse[kind].pop(0))
        odd = self.odd.get(kind)
        if odd == "plain":
            return PlainTextResponse("Bad Gateway", 502)
        if odd == "json" or not body.get("stream"):
            return JSONResponse(whole(kind))
        return StreamingResponse(self.counted(kind, odd), media_type="text/event-stream")

    async def counted(self, kind: str, odd: str | None) -> AsyncIterator[bytes]:
        self.flying += 1
        self.most = max(self.most, self.flying)
        try:
            for event in events(kind, odd):
                await asyncio.sleep(3600 if event == "hang" else self.wait)
                yield event.encode()
        finally:
            self.flying -= 1


def whole(kind: str) -> dict[str, Any]:
    if kind == "image":
        return {"created": 1, "data": [{"b64_json": "AAAA"}], "usage": {"output_tokens": 16}}
    message = {"role": "assistant", "content": "".join(WORDS)}
    choice = {"index": 0, "message": message, "finish_reason": "stop"}
    return {"choices": [choice], "usage": {"completion_tokens": 7}}


def events(kind: str, odd: str | None) -> Iterator[str]:
    def event(data: Any) -> str:
        return f"data: {json.dumps(data)}\n\n"

    if odd == "hang":
        yield "hang"
    if odd == "malformed":
        yield "data: {]\n\n"
    if kind == "image":
        yield f"event: image_generation.partial_image\n{event({'type': 'image_generation.partial_image'})}"
        if odd == "error":
            yield f"event: error\n{event({'type': 'error', 'error': {'message': 'broken', 'code': 'lost'}})}"
        elif odd != "cut":
            yield event({"type": "image_generation.completed", "usage": {"output_tokens": 16}})
        return
    yield event({"choices": [{"index": 0, "delta": {"role": "assistant", "content": ""}}]})
    for word in WORDS:
        yield event({"choices": [{"index": 0, "delta": {"content": word}}]})
    if odd == "cut":
        return
    yield event({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    yield event({"choices": [], "usage": {"completion_tokens": 7}})
    yield "data: [DONE]\n\n"


def application(stub: Stub) -> FastAPI:
    app = FastAPI()

    @app.get("/v1/models")
    async def models() -> Any:
        return {"object": "list", "data": [{"id": name} for name in stub.models]}

    @app.post("/v1/images/generations")
    async def images(request: Request) -> Response:
        return await stub.answer("image", request)

    @app.post("/v1/chat/completions")
    async def chat(request: Request) -> Response:
        return await stub.answer("chat", request)

    return app
