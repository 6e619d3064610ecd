"""The HTTP application on the built-in model: in process, or on a socket of its own."""

from __future__ import annotations

import asyncio
import base64
import io
import threading
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import cache
from typing import Any

import httpx
from flashjanus import JanusFlow
from flashjanus.scheduling import Limits
from flashjanus.serving import AsyncEngine
from flashjanus.serving.http import Settings, create_app
from flashjanus.serving.http.run import Server, bound
from flashjanus.serving.messages import Facts, Stats
from PIL import Image

SECONDS = 60
"""A test's longest wait."""


@cache
def model() -> JanusFlow:
    return JanusFlow.from_pretrained("shapes", dtype="float32")


class Told:
    """A backend that tells each request the same events."""

    facts = Facts("told", (64, 64), 16, 16, 512, "float32", "cpu", None, "0")
    ready, loading = True, False

    def __init__(self, *events: Any) -> None:
        self.events, self.cancelled = events, 0

    def submit(self, request: Any, tell: Any) -> None:
        for event in self.events:
            tell(event)

    def cancel(self, ticket: Any) -> None:
        self.cancelled += 1

    def stats(self) -> Stats:
        return Stats()

    def drain(self, timeout: float | None = None) -> bool:
        return True

    def close(self) -> None:
        pass


@asynccontextmanager
async def client(limits: Limits | None = None, **settings: Any) -> AsyncIterator[httpx.AsyncClient]:
    """Of an application in this loop: no socket, so its streams come whole, and it never sees a client leave."""
    async with AsyncEngine(model(), limits) as engine:
        transport = httpx.ASGITransport(create_app(engine, Settings(**settings)))
        async with httpx.AsyncClient(transport=transport, base_url="http://server", timeout=SECONDS) as made:
            yield made


def post(path: str, body: Any = None, headers: Any = None, limits: Limits | None = None, **settings: Any) -> Any:
    """The response to one request; body: JSON, or bytes."""
    given = {"content": body, "headers": {"content-type": "application/json", **(headers or {})}}

    async def asked() -> httpx.Response:
        async with client(limits, **settings) as one:
            if isinstance(body, bytes):
                return await one.post(path, **given)
            return await one.post(path, json=body, headers=headers)

    return asyncio.run(asyncio.wait_for(asked(), SECONDS))


class Served:
    """An application on a socket, whose loop runs in a thread."""

    def __init__(self, engine: AsyncEngine, settings: Settings) -> None:
        self.engine = engine
        self.app = create_app(self.engine, settings)
        self.server = Server(self.app)
        self._socket = bound("127.0.0.1", 0)
        self.url = "http://{}:{}".format(*self._socket.getsockname())
        self.thread = threading.Thread(target=self._run)
        self._started = threading.Event()

    def _run(self) -> None:
        async def serve() -> None:
            task = asyncio.ensure_future(self.server.serve([self._socket]))
            while not self.server.started:
                await asyncio.sleep(0.01)
            self._started.set()
            await task

        with self._socket:
            asyncio.run(serve())

    def start(self) -> None:
        self.thread.start()
        assert self._started.wait(SECONDS)

    def stop(self) -> None:
        """As a signal would."""
        self.server.stop()
        self.thread.join(SECONDS)
        assert not self.thread.is_alive()
        self.engine.backend.close()


@contextmanager
def served(limits: Limits | None = None, engine: AsyncEngine | None = None, **settings: Any) -> Iterator[Served]:
    """A server on a free port of 127.0.0.1. engine: is closed at the end; else one of the built-in model."""
    one = Served(engine or AsyncEngine(model(), limits), Settings(**{"drain": 10.0, **settings}))
    one.start()
    try:
        yield one
    finally:
        one.stop()


def image_of(b64: str) -> Image.Image:
    image = Image.open(io.BytesIO(base64.b64decode(b64)))
    image.load()
    return image


def data_url(image: Image.Image, format: str = "PNG") -> str:
    file = io.BytesIO()
    image.save(file, format)
    return f"data:image/{format.lower()};base64,{base64.b64encode(file.getvalue()).decode()}"
