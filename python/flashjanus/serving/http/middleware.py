"""The outermost layer: it gives every request an id and a log line, and lets no raw exception out."""

from __future__ import annotations

import re
import time
import uuid
from collections.abc import Mapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashjanus.serving.http.errors import ApiError, unexpected
from flashjanus.serving.http.logs import LOG
from flashjanus.serving.http.metrics import CLIENT_GONE, Meters

QUIET = ("/health/", "/metrics")
"""Paths that are polled every few seconds. Their requests are logged at the level "debug" unless they were refused;
the 503 of a server that is not ready counts as an answer."""
_SANE = re.compile(r"[A-Za-z0-9_.:/+=-]{1,128}")


class Front:
    """Gives each request an id, the client's own if that is well-formed, and logs how the request ended."""

    def __init__(self, app: ASGIApp, meters: Meters) -> None:
        self.app, self.meters = app, meters

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        given = Headers(scope=scope).get("x-request-id", "")
        request_id = given if _SANE.fullmatch(given) else f"req_{uuid.uuid4().hex}"
        began, status = time.perf_counter(), 0
        state: dict[str, Any] = scope.setdefault("state", {})
        state.update(fields={"request_id": request_id}, began=began, gone=False)

        async def answer(message: Message) -> None:
            nonlocal status
            if message["type"] == "http.response.start":
                status = message["status"]
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        posted = scope["method"] == "POST"
        self.meters.open += posted
        try:
            await self.app(scope, receive, answer)
        except Exception:
            LOG.exception("a request met an error", extra={"fields": {"request_id": request_id}})
            note(scope, code="internal_error")
            if status == 0:
                await reply(unexpected(), scope, receive, answer)
        finally:
            self.meters.open -= posted
            ended = CLIENT_GONE if state["gone"] or status == 0 else status
            self._log(scope, ended, time.perf_counter() - began)

    def _log(self, scope: Scope, status: int, seconds: float) -> None:
        fields: Mapping[str, Any] = scope["state"]["fields"]
        method, path = scope["method"], scope["path"]
        line = {**fields, "method": method, "path": path, "status": status, "seconds": round(seconds, 4)}
        quiet = path.startswith(QUIET) and (status < 400 or status == 503)
        LOG.log(10 if quiet else 20, "request", extra={"fields": line})
        if method == "POST":
            self.meters.ended(path, status, fields.get("code"), seconds)


async def reply(error: ApiError, scope: Scope, receive: Receive, send: Send) -> None:
    """Send the response for an error."""
    note(scope, code=error.code)
    await JSONResponse(error.body, error.status, dict(error.headers))(scope, receive, send)


def note(scope: Scope, **fields: Any) -> None:
    """Add fields that are not None to the request's log line."""
    scope["state"]["fields"].update({name: value for name, value in fields.items() if value is not None})
