"""A page that a browser keeps to its own host."""

from __future__ import annotations

import re

from starlette.datastructures import MutableHeaders
from starlette.types import ASGIApp, Message, Receive, Scope, Send

POLICY = (
    "default-src 'self' data: blob:; script-src 'self' 'unsafe-inline' 'unsafe-eval' blob:; "
    "style-src 'self' 'unsafe-inline'; form-action 'self'; frame-ancestors 'self'; object-src 'none'"
)
"""gradio's page has scripts and styles in itself, and makes functions of texts."""
CARDS = re.compile(rb'<meta\s+(?:property|name)="(?:og|twitter):[^>]*>')
"""What a link to the page would look like elsewhere: gradio's picture, from its host."""


class Sealed:
    """`app`, whose pages tell the browser to ask no other host, and name none. head: goes into each page's head."""

    def __init__(self, app: ASGIApp, head: str = "") -> None:
        self.app, self.head = app, head.encode()

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

        await self.app(scope, receive, sealed)
