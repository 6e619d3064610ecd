"""Requests to a backend, from a test's own thread."""

from __future__ import annotations

import os
import queue
import time
from collections.abc import Callable
from functools import cache
from typing import Any

from flashjanus import JanusFlow
from flashjanus.serving import ProcessBackend
from flashjanus.serving.messages import LAST, Event, Failure

PATIENCE = 60.0


@cache
def model() -> JanusFlow:
    return JanusFlow.from_pretrained("shapes", dtype="float32")


class Asked:
    """A request of a backend, and what is told of it."""

    def __init__(self, backend: Any, request: Any) -> None:
        self.told: queue.Queue[Event] = queue.Queue()
        self.ticket = backend.submit(request, self.told.put)

    def next(self) -> Event:
        return self.told.get(timeout=PATIENCE)

    def until(self, kind: Any) -> Event:
        """The next event of a kind; what comes before is passed over."""
        while not isinstance(event := self.next(), kind):
            assert not isinstance(event, LAST), event
        return event

    def all(self) -> list[Event]:
        events = [self.next()]
        while not isinstance(events[-1], LAST):
            events.append(self.next())
        return events

    def error(self) -> Exception:
        last = self.all()[-1]
        assert isinstance(last, Failure), last
        return last.error


def ask(backend: Any, request: Any) -> list[Event]:
    return Asked(backend, request).all()


def until(true: Callable[[], bool]) -> None:
    """Wait for it, with a bound."""
    end = time.monotonic() + PATIENCE
    while not true():
        assert time.monotonic() < end, "it has not come true"
        time.sleep(0.01)


def killed(backend: ProcessBackend, number: int) -> None:
    assert backend._child is not None
    os.kill(backend._child.process.pid, number)


def descriptors() -> int:
    return len(os.listdir("/proc/self/fd"))
