"""The asyncio interface: images can be awaited, and previews and text iterated over; leaving an iteration cancels
it."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any, cast
from weakref import WeakValueDictionary

from PIL import Image
from typing_extensions import Self

from flashjanus.api.outputs import ImageOutput
from flashjanus.serving.messages import (
    LAST,
    Accepted,
    Answered,
    ChatRequest,
    Event,
    Facts,
    Failure,
    ImageRequest,
    Images,
    Piece,
    Request,
    Stats,
)
from flashjanus.serving.slices import short_slices
from flashjanus.serving.together import afterward

if TYPE_CHECKING:  # these import torch, which a server does without when its model runs in another process
    from flashjanus.api.janusflow import JanusFlow
    from flashjanus.scheduling.policy import Limits
    from flashjanus.serving.backend import Backend


class Post:
    """Carries events from a backend's threads to the tasks of an event loop, and wakes the loop once for all events
    that have arrived meanwhile. Create it on the loop's own thread."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        short_slices()
        self._loop, self._lock = loop, threading.Lock()
        self._events: list[tuple[asyncio.Queue[Event], Event]] = []

    def send(self, to: asyncio.Queue[Event], event: Event) -> None:
        """Queue an event for the loop. Any thread may call this."""
        with self._lock:
            first = not self._events
            self._events.append((to, event))
        if first:
            afterward(self._wake)

    def _wake(self) -> None:
        try:
            self._loop.call_soon_threadsafe(self._deliver)
        except RuntimeError:
            if not self._loop.is_closed():
                raise

    def _deliver(self) -> None:
        with self._lock:
            events, self._events = self._events, []
        for to, event in events:
            to.put_nowait(event)

    @staticmethod
    def here() -> Post:
        """Return the post of the running loop."""
        loop = asyncio.get_running_loop()
        return _POSTS.get(loop) or _POSTS.setdefault(loop, Post(loop))


_POSTS: WeakValueDictionary[asyncio.AbstractEventLoop, Post] = WeakValueDictionary()


class Stream:
    """The events of an accepted request, in order; the last one is Images or Answered.

    Iteration raises the error with which the request fails. `aclose`, or leaving `async with`, cancels a request that
    has not ended.
    """

    def __init__(self, backend: Backend, request: Request) -> None:
        self.request = request
        self._backend, self._loop, self._post = backend, asyncio.get_running_loop(), Post.here()
        self._events: asyncio.Queue[Event] = asyncio.Queue()
        self._ended = False
        self._ticket = backend.submit(request, self._tell)

    def _tell(self, event: Event) -> None:
        """Pass an event on; called on a thread of the backend. Nobody waits any more if the loop has been closed."""
        if self._loop.is_closed():
            self._backend.cancel(self._ticket)
        else:
            self._post.send(self._events, event)

    async def accepted(self) -> Accepted:
        """Wait until the request has been checked. Raises InputError, BusyError, UnavailableError."""
        event = await self.__anext__()
        assert isinstance(event, Accepted)
        return event

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Event:
        if self._ended:
            raise StopAsyncIteration
        try:
            event = await self._events.get()
        except asyncio.CancelledError:
            await self.aclose()
            raise
        self._ended = isinstance(event, LAST)
        if isinstance(event, Failure):
            raise event.error
        return event

    async def aclose(self) -> None:
        if not self._ended:
            self._ended = True
            self._backend.cancel(self._ticket)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


class AsyncEngine:
    """Serves a model to any number of tasks of an event loop, and never blocks the loop.

    limits: the scheduler's limits. Requests of all tasks run together, and no task sees another's. Close the engine
    with `aclose` or by leaving `async with`.
    """

    def __init__(self, model: JanusFlow | Backend, limits: Limits | None = None) -> None:
        self.backend = _backend(model, limits)

    @classmethod
    async def from_pretrained(cls, source: str = "shapes", *, limits: Limits | None = None, **options: Any) -> Self:
        """Load a model (options as in `JanusFlow.from_pretrained`) without blocking the loop."""
        return cls(await asyncio.to_thread(_loaded, source, options), limits)

    @property
    def facts(self) -> Facts:
        """The model's facts."""
        return self.backend.facts

    @property
    def ready(self) -> bool:
        """Whether the engine would serve a request now."""
        return self.backend.ready

    @property
    def loading(self) -> bool:
        """Whether the model is being loaded, so that the engine will soon be ready."""
        return self.backend.loading

    def stats(self) -> Stats:
        """The current figures, which may be slightly out of date."""
        return self.backend.stats()

    async def submit(self, request: Request) -> Stream:
        """Submit a request, wait until it is accepted, and return its events. Raises InputError, BusyError,
        UnavailableError."""
        stream = Stream(self.backend, request)
        await stream.accepted()
        return stream

    async def generate_image(
        self, prompt: str, *, priority: int = 0, deadline: float | None = None, **options: Any
    ) -> ImageOutput:
        """Draw images of a prompt and return PIL images. The options are those of `JanusFlow.generate_image` that
        JSON can hold."""
        request = ImageRequest(prompt=prompt, options=options, steps=False, priority=priority, deadline=deadline)
        began = time.perf_counter()
        async with await self.submit(request) as events:
            async for event in events:
                if isinstance(event, Images):
                    pictures = [Image.fromarray(image) for image in event.images]
                    seeds = None if event.seeds is None else [*event.seeds]
                    scores = None if event.scores is None else [*event.scores]
                    return ImageOutput(pictures, seeds, {"total": time.perf_counter() - began}, scores)
        raise AssertionError("a request that ends has a result, or fails")

    async def stream_image(
        self,
        prompt: str,
        *,
        previews: int = 0,
        full_previews: bool = False,
        priority: int = 0,
        deadline: float | None = None,
        **options: Any,
    ) -> AsyncIterator[Event]:
        """Draw images and yield events meanwhile: Begun, Step, up to `previews` Partial, and finally Images."""
        request = ImageRequest(
            prompt=prompt,
            options=options,
            previews=previews,
            full_previews=full_previews,
            priority=priority,
            deadline=deadline,
        )
        async with await self.submit(request) as events:
            async for event in events:
                yield event

    async def chat(
        self,
        messages: Sequence[Mapping[str, Any]],
        *,
        priority: int = 0,
        deadline: float | None = None,
        **options: Any,
    ) -> AsyncIterator[str]:
        """Yield the text of an answer piece by piece. The options are those of `JanusFlow.chat`."""
        request = ChatRequest(messages=messages, options=options, priority=priority, deadline=deadline)
        async with await self.submit(request) as events:
            async for event in events:
                if isinstance(event, Piece | Answered) and event.text:
                    yield event.text

    async def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait up to `timeout` seconds for the others. Returns whether all have ended."""
        return await asyncio.to_thread(self.backend.drain, timeout)

    async def aclose(self) -> None:
        """Close the engine; requests that have not ended fail with UnavailableError."""
        await asyncio.to_thread(self.backend.close)

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *error: object) -> None:
        await self.aclose()


def _backend(model: JanusFlow | Backend, limits: Limits | None) -> Backend:
    if hasattr(model, "submit"):
        return cast("Backend", model)
    from flashjanus.serving.backend import ThreadBackend

    return ThreadBackend(model, limits)


def _loaded(source: str, options: Mapping[str, Any]) -> JanusFlow:
    from flashjanus.api.janusflow import JanusFlow

    return JanusFlow.from_pretrained(source, **options)
