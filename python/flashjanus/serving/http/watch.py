"""Collects metrics and log fields of a request from its events as they pass."""

from __future__ import annotations

import time
from collections.abc import AsyncGenerator

from starlette.types import Scope

from flashjanus.serving.async_engine import Stream
from flashjanus.serving.http.middleware import note
from flashjanus.serving.http.state import State
from flashjanus.serving.messages import Answered, Begun, Event, Images, Partial, Piece


async def watched(stream: Stream, state: State, scope: Scope) -> AsyncGenerator[Event, None]:
    """Yield the events of an accepted stream; closing this generator closes the stream. A request with n answers is
    measured by its first answer."""
    accepted, seen = time.perf_counter(), set[type]()
    tokens, first = 0, 0.0
    began: float = scope["state"]["began"]
    meters = state.meters
    async with stream:
        async for event in stream:
            now = time.perf_counter()
            if type(event) not in seen:
                seen.add(type(event))
                if isinstance(event, Begun):
                    meters.admission.observe(now - accepted)
                    note(scope, waited=round(now - accepted, 4))
                elif isinstance(event, Piece):
                    meters.first_token.observe(now - began)
                    first = now
                elif isinstance(event, Partial):
                    meters.first_partial.observe(now - began)
                elif isinstance(event, Images):
                    meters.first_image.observe(now - began)
            tokens += isinstance(event, Piece)
            if isinstance(event, Answered) and tokens > 1:
                meters.token.observe((now - first) / (tokens - 1))
            if isinstance(event, Images | Answered):
                used = event.usage
                note(scope, prompt_tokens=used.prompt_tokens, completion_tokens=used.completion_tokens)
            yield event
