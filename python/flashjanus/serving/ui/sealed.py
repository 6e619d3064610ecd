"""Middleware that restricts a page to its own host, and lets the server exit while the page is open."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Callable

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; form-action 'self'; frame-ancestors 'self'; object-src 'none'"
)
"""gradio's page contains inline scripts and styles, and creates functions from text."""
HEARTBEAT = "/heartbeat/"
"""The path of a connection that gradio holds while a page is open; its end tells gradio that the page was closed."""
LOOK = 0.25
"""Seconds between checks whether such connections have to end."""
CARDS = re.compile(rb'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>')
"""Previews for links to the page, which name gradio's picture on gradio's host."""


class Sealed:
    """Wraps `app` so that its pages tell the browser to contact no other host, and contain no address of one.

    head: inserted into the head of each page. over: whether the server is about to exit, which an open page must not
    delay.
    """

    def __init__(self, app: ASGIApp, head: str, over: Callable[[], bool]) -> None:
        self.app, self.head, self.over = app, head.encode(), over

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        start: Message | None = None
        page = b""

        async def sealed(message: Message) -> None:
            nonlocal start, page
            if message["type"] == "http.response.start":
                headers = MutableHeaders(scope=message)
                headers["content-security-policy"] = POLICY
                headers["referrer-policy"] = "same-origin"
                headers["x-content-type-options"] = "nosniff"
                if headers.get("content-type", "").startswith("text/html") and "content-encoding" not in headers:
                    start = message
                    return
            elif start is not None and message["type"] == "http.response.body":
                page += message.get("body", b"")
                if message.get("more_body", False):
                    return
                page = CARDS.sub(b"", page).replace(b"<head>", b"<head>" + self.head, 1)
                MutableHeaders(scope=start)["content-length"] = str(len(page))
                await send(start)
                await send({**message, "body": page})
                return
            await send(message)

        if HEARTBEAT in scope["path"]:
            await self._beat(scope, receive, sealed)
        else:
            await self.app(scope, receive, sealed)

    async def _beat(self, scope: Scope, receive: Receive, send: Send) -> None:
        began = ended = False

        async def noted(message: Message) -> None:
            nonlocal began, ended
            began, ended = True, message["type"] == "http.response.body" and not message.get("more_body", False)
            await send(message)

        task = asyncio.ensure_future(self.app(scope, receive, noted))
        try:
            while not task.done() and not (began and self.over()):
                await asyncio.wait({task}, timeout=LOOK)
        finally:
            if not task.done():
                task.cancel()
                await asyncio.wait({task})
        if not task.cancelled():
            task.result()
        elif not ended:
            await send({"type": "http.response.body", "body": b""})
