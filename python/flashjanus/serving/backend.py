"""Backends compute what clients request: on a thread of this process, or in another process (worker.py)."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from typing import Any, Protocol

from flashjanus.api.janusflow import JanusFlow
from flashjanus.engine.runtime.openmp import end_team
from flashjanus.errors import BusyError, FlashJanusError, UnavailableError
from flashjanus.scheduling.policy import Limits
from flashjanus.serving import orders
from flashjanus.serving.desk import Desk, Tell, Ticket, facts
from flashjanus.serving.messages import LAST, Event, Facts, Failure, Request, Stats, unexpected
from flashjanus.serving.slices import usual_slices
from flashjanus.serving.together import together

READERS = 2
"""Threads that tokenize prompts and decode images."""
REFRESH = 0.1
"""Seconds between updates of the figures while work goes on."""
LOG = logging.getLogger(__name__)


class Backend(Protocol):
    """Serves requests from any thread. `tell` is called on a thread of the backend and must not block. It gets
    Accepted or Failure first, then the request's events, and finally Images, Answered or Failure; after `cancel` it
    gets at most the event that was being delivered just then. A `tell` that raises gets no further events."""

    def submit(self, request: Request, tell: Tell) -> Any:
        """Submit a request and return its ticket without waiting."""

    def cancel(self, ticket: Any) -> None:
        """Cancel a request: nobody waits for it any more."""

    @property
    def ready(self) -> bool:
        """Whether the backend would serve a request now."""

    @property
    def loading(self) -> bool:
        """Whether the model is being loaded, so that the backend will soon be ready."""

    @property
    def facts(self) -> Facts:
        """The model's facts. Raises UnavailableError while no model is loaded."""

    def stats(self) -> Stats:
        """The current figures, which may be slightly out of date."""

    def drain(self, timeout: float | None = None) -> bool:
        """Refuse new requests and wait for the others. Returns whether all have ended."""

    def close(self) -> None:
        """Refuse new requests; those in progress fail with UnavailableError."""


@dataclass(eq=False)
class Running:
    """A request of a ThreadBackend. since: by time.monotonic(). ticket: set once the engine's thread has taken the
    request."""

    tell: Tell
    since: float
    ticket: Ticket | None = None
    cancelled: bool = False


class ThreadBackend:
    """One thread drives the scheduler of `model`; a few others tokenize prompts and decode images."""

    def __init__(self, model: JanusFlow, limits: Limits | None = None) -> None:
        self._model, self._limits = model, limits or Limits()
        self._desk = Desk(model, self._limits)  # only the engine's thread uses it from now on
        self._stats = Stats()
        self._wake = threading.Condition()
        self._inbox: deque[Callable[[], None]] = deque()
        self._running: set[Running] = set()
        self._unread = 0
        self._refused: str | None = None
        self._ended = False
        self._turn, self._at_work = 0, False
        self._readers = ThreadPoolExecutor(READERS, "flashjanus-reader")
        self._thread = threading.Thread(target=self._serve, name="flashjanus-engine", daemon=True)
        end_team()  # of the loading thread: it would idle beside the engine's team (see openmp.py)
        self._thread.start()

    @property
    def ready(self) -> bool:
        return self._refused is None

    @property
    def loading(self) -> bool:
        return False  # its model was loaded before

    @property
    def facts(self) -> Facts:
        return facts(self._model)  # anew each time, because adapters come and go

    def stats(self) -> Stats:
        return self._stats

    @property
    def turn(self) -> int | None:
        """The number of the turn that the engine's thread is in; if it stays the same for long, the thread is stuck.
        None while the thread waits."""
        return self._turn if self._at_work else None

    def submit(self, request: Request, tell: Tell) -> Running:
        running = Running(tell, time.monotonic())
        refused = self._enter(request, running)
        if refused is not None:
            tell(Failure(refused))
        return running

    def _enter(self, request: Request, running: Running) -> FlashJanusError | None:
        """Queue a request for a reader, unless as many are queued as could run and wait."""
        limits = self._limits
        with self._wake:
            if self._refused is not None:
                return UnavailableError(self._refused)
            if limits.queued is not None and self._unread >= limits.queued + limits.images + limits.answers:
                return BusyError(f"too many requests at once: {self._unread} have not been read yet; try again later")
            self._readers.submit(self._read, request, running)
            self._unread += 1
            self._running.add(running)
            return None

    def cancel(self, ticket: Running) -> None:
        ticket.cancelled = True
        self._put(lambda: self._cancelled(ticket))

    def drain(self, timeout: float | None = None) -> bool:
        with self._wake:
            self._refused = self._refused or "the engine is shutting down and takes no more requests"
            return self._wake.wait_for(lambda: not self._running, timeout)

    def close(self) -> None:
        self.drain(0)
        with self._wake:
            self._ended = True
            self._wake.notify_all()
        self._thread.join()
        self._readers.shutdown(cancel_futures=True)

    def _read(self, request: Request, running: Running) -> None:
        with self._wake:
            self._unread -= 1
        if running.cancelled:
            return
        try:
            order = orders.order(self._model, request)
        except FlashJanusError as error:
            self._fail(running, error)
        except Exception as error:
            LOG.exception("a request could not be read")
            self._fail(running, unexpected(error))
        else:
            self._put(lambda: self._taken(order, running))
        finally:
            end_team()  # as above

    def _fail(self, running: Running, error: FlashJanusError) -> None:
        self._put(lambda: self._tell(running, Failure(error)))

    def _put(self, work: Callable[[], None]) -> None:
        with self._wake:
            if not self._ended:
                self._inbox.append(work)
                self._wake.notify_all()

    def _taken(self, order: orders.Order, running: Running) -> None:
        if not running.cancelled:
            running.ticket = self._desk.take(order, lambda event: self._tell(running, event), running.since)

    def _cancelled(self, running: Running) -> None:
        if running in self._running:
            self._forget(running)
            if running.ticket is not None:
                self._desk.cancel(running.ticket)

    def _tell(self, running: Running, event: Event) -> None:
        if running.cancelled or running not in self._running:
            return
        try:
            running.tell(event)
        except Exception:
            LOG.exception("a listener raised an error and gets no further events of its request")
            self.cancel(running)
        if isinstance(event, LAST):  # only after telling it, because drain waits for that
            self._forget(running)

    def _forget(self, running: Running) -> None:
        with self._wake:
            self._running.discard(running)
            self._wake.notify_all()

    def _serve(self) -> None:
        usual_slices()
        at = 0.0
        try:
            while self._work():
                if not self._desk.busy or time.monotonic() - at > REFRESH:
                    self._stats, at = self._desk.stats(), time.monotonic()
        except BaseException as error:
            self._lose(unexpected(error))
            raise
        self._lose(UnavailableError("the engine was closed during the request"))

    def _work(self) -> bool:
        """Take in new work, then run one turn. Returns False once the engine is closed."""
        with self._wake:
            self._at_work = False
            self._wake.wait_for(lambda: self._inbox or self._desk.busy or self._ended)
            works, ended = [*self._inbox], self._ended
            self._inbox.clear()
        self._turn, self._at_work = self._turn + 1, True
        with together():
            for work in works:
                work()
        if not ended and self._desk.busy:
            with together():
                self._desk.step()
        return not ended

    def _lose(self, error: FlashJanusError) -> None:
        with self._wake:
            self._refused, self._ended = self._refused or f"the engine has ended: {error}", True
            self._inbox.clear()
        self._at_work = False
        self._stats = replace(self._stats, queued=0, image_rows=0, answer_rows=0)
        try:
            self._desk.lose(error)
        finally:  # the desk itself may be broken
            for running in [*self._running]:
                self._tell(running, Failure(error))
                self._forget(running)
