"""Server-sent events: the stream ends when its client leaves, and reports an error as its last event."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncGenerator, Awaitable, Callable, Mapping, Sequence
from contextlib import aclosing, suppress
from typing import Any, TypeVar

from starlette.requests import ClientDisconnect
from starlette.responses import Response
from starlette.types import Receive, Scope, Send

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
    """Encode one event; `name` goes before it if the API names its events."""
    head = "" if name is None else f"event: {name}\n"
    return f"{head}data: {json.dumps(data, separators=(',', ':'))}\n\n".encode()


def failed(error: ApiError) -> bytes:
    """Encode an error as an event, {"type": "error", "error": {...}}."""
    return event({"type": "error", **error.body}, "error")


class EventStream(Response):
    """Sends the events that `events` yields. When the client leaves or stalls, `events` is closed, which cancels the
    request.

    An error in mid-stream becomes the last event, as `failed` encodes it.
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
        self._since, self._busy = asyncio.get_running_loop().time(), False
        head = {"type": "http.response.start", "status": self.status_code, "headers": self.raw_headers}

        async def whole() -> None:
            await send(head)
            await self._send_all(scope, send)

        with suppress(ClientDisconnect):  # the departure of the client is recorded already, and nobody is left to tell
            await unless_gone(whole(), self._streams, scope, receive, self._attend(send))

    async def _send_all(self, scope: Scope, send: Send) -> None:
        try:
            async with aclosing(self._events) as events:
                async for data in events:
                    await self._put(send, data)
        except FlashJanusError as error:
            said = told(error)
            note(scope, code=said.code)
            await self._put(send, self._failed(said))
        except ClientDisconnect:
            raise
        except Exception:
            LOG.exception("a stream met an error", extra={"fields": scope["state"]["fields"]})
            note(scope, code="internal_error")
            await self._put(send, self._failed(unexpected()))
        await self._put(send, b"", more=False)

    async def _put(self, send: Send, data: bytes, more: bool = True) -> None:
        now = asyncio.get_running_loop().time
        self._since, self._busy = now(), True
        try:
            await send({"type": "http.response.body", "body": data, "more_body": more})
        except OSError as error:  # the connection is lost
            raise ClientDisconnect from error
        finally:
            self._since, self._busy = now(), False

    async def _attend(self, send: Send) -> None:
        """Send comments while the stream is silent, because proxies close silent connections. This runs beside the
        events, which therefore need no timers of their own. Ends if the client stops reading."""
        stall, quiet = self._settings.stall, self._settings.keepalive
        while True:
            passed = asyncio.get_running_loop().time() - self._since
            if self._busy:
                if passed >= stall:
                    return
                await asyncio.sleep(stall - passed)
            elif passed < quiet:
                await asyncio.sleep(min(quiet - passed, stall))
            else:
                try:
                    await asyncio.wait_for(self._put(send, _PING), stall)
                except (ClientDisconnect, asyncio.TimeoutError):
                    return


async def unless_gone(
    work: Awaitable[T], streams: Sequence[Stream], scope: Scope, receive: Receive, *beside: Awaitable[None]
) -> T:
    """Return the result of `work`. If the client leaves first, or something `beside` ends, cancel the work and raise
    ClientDisconnect. In every case close the streams, including those that nobody has begun to read."""

    async def gone() -> None:
        while (await receive())["type"] != "http.disconnect":
            pass

    working = asyncio.ensure_future(work)
    tasks = [working, *map(asyncio.ensure_future, (gone(), *beside))]
    try:
        await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
        if working.done():
            return working.result()
        raise ClientDisconnect
    except ClientDisconnect:
        scope["state"]["gone"] = True
        raise
    finally:
        for task in tasks:
            if not task.done():
                task.cancel()
                await asyncio.wait([task])
        for stream in streams:
            await stream.aclose()
