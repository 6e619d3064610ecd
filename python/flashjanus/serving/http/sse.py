"""Server-sent events: a stream that ends when its client leaves, and tells an error as its last event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Message, Receive, Scope, Send

from flashjanus.errors import FlashJanusError
from flashjanus.serving.async_engine import Stream
from flashjanus.serving.http.errors import ApiError, told, unexpected
from flashjanus.serving.http.logs import LOG
from flashjanus.serving.http.middleware import note
from flashjanus.serving.http.settings import Settings

T = TypeVar("T")
DONE = b"data: [DONE]\n\n"
_PING = b": waiting\n\n"


def event(data: Mapping[str, Any], name: str | None = None) -> bytes:
    """One event; `name` goes before it where the API names its events."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def failed(error: ApiError) -> bytes:
    """The event that tells an error, {"type": "error", "error": {...}}."""
    return event({"type": "error", **error.body}, "error")


class EventStream(Response):
    """Sends the events that `events` gives. When the client leaves or stalls, it is closed, which cancels the request.

    An error in the midst is the last event: what `failed` makes of it.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        events: AsyncGenerator[bytes, None],
        streams: Sequence[Stream],
        settings: Settings,
        failed: Callable[[ApiError], bytes] = failed,
    ) -> None:
        super().__init__(headers={"cache-control": "no-cache", "x-accel-buffering": "no"})
        del self.headers["content-length"]
        self._events, self._streams, self._settings, self._failed = events, streams, settings, failed

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}

        async def whole() -> None:
            await send(head)
            await self._send(scope, send)

        with suppress(ClientDisconnect):  # which is noted, and there is nobody to tell
            await unless_gone(whole(), self._streams, scope, receive)

    async def _send(self, scope: Scope, send: Send) -> None:
        async def put(data: bytes, more: bool = True) -> None:
            message: Message = {"type": "http.response.body", "body": data, "more_body": more}
            try:
                await asyncio.wait_for(send(message), self._settings.stall)
            except (OSError, asyncio.TimeoutError) as error:  # the connection is lost, or the client reads nothing
                raise ClientDisconnect from error

        try:
            async with aclosing(kept_alive(self._events, self._settings.keepalive)) as events:
                async for data in events:
                    await put(data)
        except FlashJanusError as error:
            said = told(error)
            note(scope, code=said.code)
            await put(self._failed(said))
        except ClientDisconnect:
            raise
        except Exception:
            LOG.exception("a stream met an error", extra={"fields": scope["state"]["fields"]})
            note(scope, code="internal_error")
            await put(self._failed(unexpected()))
        await put(b"", more=False)


async def kept_alive(events: AsyncGenerator[bytes, None], seconds: float) -> AsyncGenerator[bytes, None]:
    """The events, and comments where nothing else happens for so long: proxies end connections that are silent."""
    following: asyncio.Future[bytes] | None = None
    try:
        while True:
            following = following or asyncio.ensure_future(anext(events))
            await asyncio.wait([following], timeout=seconds)
            if not following.done():
                yield _PING
                continue
            done, following = following, None
            try:
                data = done.result()
            except StopAsyncIteration:
                return
            yield data
    finally:
        if following is not None:
            following.cancel()
            await asyncio.wait([following])
        await events.aclose()


async def unless_gone(work: Awaitable[T], streams: Sequence[Stream], scope: Scope, receive: Receive) -> T:
    """What `work` gives. Raises ClientDisconnect, with the work cancelled, when the client leaves before that. In any
    case the streams are closed, also those that nobody has begun to read."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working, watching = asyncio.ensure_future(work), asyncio.ensure_future(gone())
    try:
        await asyncio.wait([working, watching], return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    except ClientDisconnect:
        scope["state"]["gone"] = True
        raise
    finally:
        for task in (working, watching):
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        for stream in streams:
            await stream.aclose()
