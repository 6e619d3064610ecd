"""Serves many requests of one caller together: as many as fit are in flight, and results arrive as they are
finished."""

from __future__ import annotations

import queue
from collections.abc import Callable, Generator, Iterable, Iterator
from dataclasses import dataclass, field, replace
from typing import Any, TypeVar

from flashjanus.errors import FlashJanusError, InputError
from flashjanus.serving.backend import Backend
from flashjanus.serving.messages import Answered, Event, Failure, Images, Piece, Request

Key = TypeVar("Key")
WINDOW = 128
"""Requests in flight: more than are live at once, so that a request that has been read can follow each that ends."""


@dataclass
class Flying:
    key: Any
    ticket: Any = None
    text: list[str] = field(default_factory=list)


def served(
    backend: Backend, keys: Iterable[Key], request: Callable[[Key], Request], window: int = WINDOW
) -> Generator[tuple[Key, Images | Answered | FlashJanusError], None, None]:
    """Yield each key's result, or the error with which its request failed, in the order in which they end. An answer
    has its whole text. Closing the iterator cancels the requests in flight. Raises the engine's error if the engine
    has ended."""
    told: queue.SimpleQueue[tuple[int, Event]] = queue.SimpleQueue()
    flying: dict[int, Flying] = {}
    try:
        for number, key in enumerate(keys):
            try:
                asked = request(key)
            except InputError as error:
                yield key, error
                continue
            flying[number] = one = Flying(key)
            one.ticket = backend.submit(asked, _teller(told, number))
            while len(flying) >= window:
                yield from _next(backend, told, flying)
        while flying:
            yield from _next(backend, told, flying)
    finally:
        for one in flying.values():
            backend.cancel(one.ticket)


def _teller(told: queue.SimpleQueue[tuple[int, Event]], number: int) -> Callable[[Event], None]:
    return lambda event: told.put((number, event))


def _next(
    backend: Backend, told: queue.SimpleQueue[tuple[int, Event]], flying: dict[int, Flying]
) -> Iterator[tuple[Any, Images | Answered | FlashJanusError]]:
    """Handle one event. Yields a result if the event brings one."""
    number, event = told.get()
    one = flying[number]
    if isinstance(event, Piece):
        one.text.append(event.text)
        return
    if not isinstance(event, Images | Answered | Failure):
        return
    if isinstance(event, Failure) and not backend.ready:
        raise event.error
    del flying[number]
    if isinstance(event, Failure):
        yield one.key, event.error
    elif isinstance(event, Answered):
        yield one.key, replace(event, text="".join([*one.text, event.text]))
    else:
        yield one.key, event
