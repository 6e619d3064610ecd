"""Builds a response as clients see it: an object that grows, and the events that report its growth."""

from __future__ import annotations

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, Mapping
from contextlib import aclosing
from typing import Any, TypeAlias

from flashjanus.serving.http import sse
from flashjanus.serving.http.chat import logprobs_of
from flashjanus.serving.http.errors import ApiError
from flashjanus.serving.http.images import Drawing, facts_of, usage
from flashjanus.serving.messages import Answered, Begun, Event, Images, Partial, Piece, Usage

Told: TypeAlias = AsyncGenerator[dict[str, Any], None]
"""Events of the API; the last one's "response" is the whole reply."""
CALL = "response.image_generation_call"
CODES = {429: "rate_limit_exceeded"}
"""Error codes of a response, by status."""


class Reply:
    """One response. echo: the request fields that it repeats."""

    def __init__(self, model: str, echo: Mapping[str, Any]) -> None:
        self._fixed = {
            "id": f"resp_{uuid.uuid4().hex}",
            "object": "response",
            "created_at": int(time.time()),
            "model": model,
            **echo,
        }
        self._item: dict[str, Any] = {}
        self._number = 0

    def _event(self, kind: str, **fields: Any) -> dict[str, Any]:
        told = {"type": kind, "sequence_number": self._number, **fields}
        self._number += 1
        return told

    def _response(self, status: str, *output: Mapping[str, Any], **more: Any) -> dict[str, Any]:
        rest = {"error": None, "incomplete_details": None, "output": [*output], "usage": None}
        return {**self._fixed, "status": status, **rest, **more}

    def _begun(self) -> list[dict[str, Any]]:
        """The first events, sent once there is an output item."""
        states = ("created", "in_progress")
        told = [self._event(f"response.{state}", response=self._response("in_progress")) for state in states]
        return [*told, self._event("response.output_item.added", output_index=0, item=self._item)]

    def _ended(self, status: str, item: dict[str, Any], used: Usage, **more: Any) -> list[dict[str, Any]]:
        response = self._response(status, item, usage=tokens(used), **more)
        if status == "completed":
            response["completed_at"] = int(time.time())
        done = self._event("response.output_item.done", output_index=0, item=item)
        return [done, self._event(f"response.{status}", response=response)]

    def failed(self, error: ApiError) -> bytes:
        """The last event of a stream that failed."""
        code = CODES.get(error.status, "server_error" if error.status >= 500 else "invalid_prompt")
        why = {"code": code, "message": error.message, "param": error.param, "type": error.type}
        failed = "failed" if self._item.get("type") == "image_generation_call" else "incomplete"
        output = [{**self._item, "status": failed}] if self._item else []
        event = self._event("response.failed", response=self._response("failed", *output, error=why))
        return sse.event(event, event["type"])

    async def text(self, events: AsyncGenerator[Event, None]) -> Told:
        """Yield the events of an answer."""
        message = self._item = {
            "id": f"msg_{uuid.uuid4().hex}",
            "type": "message",
            "role": "assistant",
            "status": "in_progress",
            "content": [],
        }
        place = {"item_id": message["id"], "output_index": 0, "content_index": 0}
        text, logprobs = "", list[dict[str, Any]]()

        def part() -> dict[str, Any]:
            return {"type": "output_text", "text": text, "annotations": [], "logprobs": logprobs}

        for event in self._begun():
            yield event
        yield self._event("response.content_part.added", **place, part=part())
        async with aclosing(events) as told:
            async for step in told:
                if not isinstance(step, Piece | Answered):
                    continue
                own = logprobs_of(step) if isinstance(step, Piece) else []
                text, logprobs = text + step.text, logprobs + own
                self._item = {**message, "content": [part()]}
                if step.text or own:
                    yield self._event("response.output_text.delta", **place, delta=step.text, logprobs=own)
                if isinstance(step, Answered):
                    yield self._event("response.output_text.done", **place, text=text, logprobs=logprobs)
                    yield self._event("response.content_part.done", **place, part=part())
                    cut = step.reason == "length"
                    status = "incomplete" if cut else "completed"
                    more = {"incomplete_details": {"reason": "max_output_tokens"}} if cut else {}
                    for event in self._ended(status, {**self._item, "status": status}, step.usage, **more):
                        yield event

    async def image(self, events: AsyncGenerator[Event, None], asked: Drawing) -> Told:
        """Yield the events of an image."""
        call = self._item = {
            "id": f"ig_{uuid.uuid4().hex}",
            "type": "image_generation_call",
            "status": "in_progress",
            "result": None,
        }
        place = {"item_id": call["id"], "output_index": 0}
        for event in self._begun():
            yield event
        yield self._event(f"{CALL}.in_progress", **place)
        async with aclosing(events) as told:
            async for step in told:
                if isinstance(step, Begun):
                    self._item = {**call, "status": "generating"}
                    yield self._event(f"{CALL}.generating", **place)
                elif isinstance(step, Partial):
                    image = await asyncio.to_thread(asked.rendering.base64, step.images[0])
                    shown = {"partial_image_index": step.index, "partial_image_b64": image, **asked.facts}
                    yield self._event(f"{CALL}.partial_image", **place, **shown)
                elif isinstance(step, Images):
                    image = await asyncio.to_thread(asked.rendering.base64, step.images[0])
                    made = {
                        "action": "generate",
                        "revised_prompt": asked.request.prompt,
                        **asked.facts,
                        **facts_of(step, 0),
                    }
                    item = {**call, "status": "completed", "result": image, **made}
                    yield self._event(f"{CALL}.completed", **place)
                    used = {"image_gen": usage(step.usage), "web_search": {"num_requests": 0}}
                    for event in self._ended("completed", item, step.usage, tool_usage=used):
                        yield event


def tokens(used: Usage) -> dict[str, Any]:
    """Token counts in the form of the Responses API."""
    return {
        "input_tokens": used.prompt_tokens,
        "input_tokens_details": {"cached_tokens": used.cached_tokens, "cache_write_tokens": 0},
        "output_tokens": used.completion_tokens,
        "output_tokens_details": {"reasoning_tokens": 0},
        "total_tokens": used.prompt_tokens + used.completion_tokens,
    }


async def streamed(told: Told, large: bool) -> AsyncGenerator[bytes, None]:
    """Encode events as server-sent events. large: they contain images, so a thread encodes them."""
    async with aclosing(told) as events:
        async for event in events:
            kind = event["type"]
            yield await asyncio.to_thread(sse.event, event, kind) if large else sse.event(event, kind)


async def last(told: Told) -> dict[str, Any]:
    """Return only the last event's response, which is the whole reply."""
    found = dict[str, Any]()
    async with aclosing(told) as events:
        async for event in events:
            found = event
    whole: dict[str, Any] = found["response"]
    return whole
