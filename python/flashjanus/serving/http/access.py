"""Checks who may send requests, how many at once, and how large: API keys, concurrent requests, and body sizes."""

from __future__ import annotations

import hashlib
import hmac
from collections import Counter
from collections.abc import Mapping

from starlette.datastructures import Headers
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from flashjanus.serving.http.errors import ApiError
from flashjanus.serving.http.middleware import note, reply
from flashjanus.serving.http.settings import Settings

OPEN = ("/health/", "/docs", "/openapi.json")
"""The initial value of app.state.open: path prefixes that need no API key."""


class Access:
    """Lets a request through, or refuses it with a reason."""

    def __init__(self, app: ASGIApp, settings: Settings) -> None:
        self.app, self.settings = app, settings
        self._open = Counter[str]()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        headers = Headers(scope=scope)
        try:
            who = self._who(scope, headers)
            limited = _limited(receive, headers, self.settings.body_bytes)
        except ApiError as error:
            await reply(error, scope, receive, send)
            return
        most = self.settings.key_requests
        if most is None or scope["method"] != "POST":
            await self.app(scope, limited, send)
            return
        if self._open[who] >= most:
            words = f"expected at most {most} open requests per key or address; wait until one of them has ended"
            refused = ApiError(429, words, "concurrency_limit", headers={"retry-after": "1"})
            await reply(refused, scope, receive, send)
            return
        self._open[who] += 1
        try:
            await self.app(scope, limited, send)
        finally:
            self._open[who] -= 1
            if not self._open[who]:
                del self._open[who]

    def _who(self, scope: Scope, headers: Mapping[str, str]) -> str:
        """A name for the key, from which the key cannot be recovered, or the client's address. Raises ApiError."""
        hosts, host = self.settings.hosts, host_of(headers.get("host", ""))
        if hosts and host not in hosts:
            words = (
                f"expected the host {' or '.join(hosts)}, got {host!r:.80}; start the server with --allow-host to "
                "allow it"
            )
            raise ApiError(403, words, "host_not_allowed")
        if not self.settings.keys or scope["path"].startswith(scope["app"].state.open):
            client: tuple[str, int] | None = scope.get("client")
            return client[0] if client else ""
        scheme, _, key = headers.get("authorization", "").partition(" ")
        given = key.strip().encode() if scheme.lower() == "bearer" else b""
        if not is_known(given, self.settings):
            words = (
                "expected an API key of this server, got an unknown one; check it"
                if given
                else "expected an API key in the header 'Authorization: Bearer KEY'"
            )
            raise ApiError(401, words, "invalid_api_key", headers={"www-authenticate": "Bearer"})
        who = hashlib.sha256(given).hexdigest()[:8]
        note(scope, key=who)
        return who


def host_of(header: str) -> str:
    """The host name of a Host header, without its port."""
    named = header.strip().lower()
    return named[1:].partition("]")[0] if named.startswith("[") else named.partition(":")[0]


def is_known(key: bytes, settings: Settings) -> bool:
    """Whether this is one of the keys, compared in a time that reveals nothing about them."""
    matches = [hmac.compare_digest(key, one.encode()) for one in settings.keys]  # compares every key
    return any(matches)


def _limited(receive: Receive, headers: Mapping[str, str], most: int) -> Receive:
    """A `receive` that accepts at most `most` bytes, whatever the headers say. This call and the result both raise
    ApiError."""
    words = f"expected a body of at most {most} bytes; send smaller images, or fewer"
    error = ApiError(413, words, "body_too_large", headers={"connection": "close"})
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
