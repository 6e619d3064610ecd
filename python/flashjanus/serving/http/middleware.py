"""What holds for every request: its id, its key, its body's size, the log's line; no error goes out as it is."""

from __future__ import annotations

import hashlib
import hmac
import re
import time
import uuid
from collections import Counter
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashjanus.serving.http.errors import ApiError, unexpected
from flashjanus.serving.http.logs import LOG
from flashjanus.serving.http.metrics import Meters
from flashjanus.serving.http.settings import Settings

OPEN = ("/health/", "/docs", "/openapi.json")
"""Paths below which no key is asked for."""
GONE = 499
"""In logs and figures, the status of a request whose client has left."""
_SANE = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}")


class Guard:
    """The outermost layer of the application; `fields(scope)` are what a request's line in the log holds."""

    def __init__(self, app: ASGIApp, settings: Settings, meters: Meters) -> None:
        self.app, self.settings, self.meters = app, settings, meters
        self._keys = [key.encode() for key in settings.keys]
        self._open = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        given = headers.get("x-request-id", "")
        request_id = given if _SANE.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        state: dict[str, Any] = scope.setdefault("state", {})
        state.update(fields={"request_id": request_id}, began=time.perf_counter())
        began, status = time.perf_counter(), 0

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        try:
            await self._checked(scope, headers, receive, answer)
        except ApiError as error:
            if status == 0:
                await reply(error, scope, receive, answer)
        except Exception:
            LOG.exception("a request met an error", extra={"fields": {"request_id": request_id}})
            if status == 0:
                await reply(unexpected(), scope, receive, answer)
        finally:
            ended = GONE if state.get("gone") else status or GONE
            self._log(scope, state["fields"], ended, time.perf_counter() - began)

    async def _checked(self, scope: Scope, headers: Headers, receive: Receive, send: Send) -> None:
        path: str = scope["path"]
        client = (scope.get("client") or ("",))[0]
        who = client
        if self._keys and not any(path.startswith(one) for one in OPEN):
            who = self._key(headers)
            scope["state"]["fields"]["key"] = who
        receive = _limited(receive, headers, self.settings.body_bytes)
        most = self.settings.key_requests
        if most is None or scope["method"] != "POST":
            await self.app(scope, receive, send)
            return
        if self._open[who] >= most:
            words = f"expected at most {most} requests at once of one key or address; wait until one of them has ended"
            raise ApiError(429, words, "concurrency_limit", headers={"retry-after": "1"})
        self._open[who] += 1
        try:
            await self.app(scope, receive, send)
        finally:
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]

    def _key(self, headers: Mapping[str, str]) -> str:
        """A name for the key, from which it cannot be found. Raises ApiError."""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode() if scheme.lower() == "bearer" else b""
        matches = [hmac.compare_digest(given, one) for one in self._keys]  # all of them, whichever it is
        if not any(matches):
            words = (
                "this API key is not known here; check it"
                if given
                else "expected an API key in the header 'Authorization: Bearer KEY'"
            )
            raise ApiError(401, words, "invalid_api_key", headers={"www-authenticate": "Bearer"})
        return hashlib.sha256(given).hexdigest()[:8]

    def _log(self, scope: Scope, fields: Mapping[str, Any], status: int, seconds: float) -> None:
        line = {
            **fields,
            "method": scope["method"],
            "path": scope["path"],
            "status": status,
            "seconds": round(seconds, 4),
        }
        quiet = scope["path"].startswith(("/health/", "/metrics")) and status < 400
        LOG.log(10 if quiet else 20, "request", extra={"fields": line})
        if scope["method"] == "POST":
            self.meters.ended(scope["path"], status, fields.get("code"), seconds)


async def reply(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """The response that tells an error."""
    note(scope, code=error.code)
    await JSONResponse(error.body, error.status, dict(error.headers))(scope, receive, send)


def note(scope: Scope, **fields: Any) -> None:
    """Add to the request's line in the log."""
    scope["state"]["fields"].update({name: value for name, value in fields.items() if value is not None})


def _limited(receive: Receive, headers: Mapping[str, str], most: int) -> Receive:
    """`receive` that takes no more than `most` bytes, whatever the headers say. Raises ApiError."""
    error = ApiError(413, f"expected a body of at most {most} bytes; send smaller images, or fewer", "body_too_large")
    length = headers.get("content-length", "")
    if length.isdecimal() and int(length) > most:
        raise error
    taken = 0

    async def counted() -> Message:
        nonlocal taken
        message = await receive()
        if message["type"] == "http.request":
            taken += len(message.get("body", b""))
            if taken > most:
                raise error
        return message

    return counted
