"""Runs the engine in its own process, with its own Python interpreter, and restarts it when it dies; the server
keeps running."""

from __future__ import annotations

import itertools
import logging
import os
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import asdict, dataclass, fields, replace
from typing import TYPE_CHECKING, Any

from flashjanus.errors import BusyError, FlashJanusError, UnavailableError
from flashjanus.serving.child import Child, Patience, fate
from flashjanus.serving.messages import LAST, Event, Facts, Failure, Request, Stats, unexpected
from flashjanus.serving.slices import short_slices

if TYPE_CHECKING:
    from flashjanus.scheduling.policy import Limits

STEADY = 60.0
"""Seconds after which the failures before a working worker no longer count."""
SLOWEST = 60.0
"""The longest delay in seconds before a restart."""
LOG = logging.getLogger(__name__)
Tell = Callable[[Event], None]


@dataclass(eq=False)
class Running:
    """A request that was sent to a worker. ended: its last event has arrived, and whoever received it delivers it."""

    number: int
    tell: Tell
    ended: bool = False


class ProcessBackend:
    """Serves a model that a worker process loads. The source is "shapes", a folder or a hub id, with the options of
    `JanusFlow.from_pretrained` and the scheduler's limits.

    The constructor returns when the model is loaded, and raises the error if loading fails. With wait=False it returns
    at once, and `wait_ready` waits instead. A worker that dies later is restarted after `backoff` seconds, and after
    twice the delay each time that it dies young again. After `restarts` workers in a row that could not load the model,
    no more are started.
    """

    def __init__(
        self,
        source: str | os.PathLike[str] = "shapes",
        *,
        limits: Limits | Mapping[str, int | None] | None = None,
        restarts: int = 5,
        backoff: float = 1.0,
        patience: Patience | None = None,
        wait: bool = True,
        **options: Any,
    ) -> None:
        bounds = limits if limits is None or isinstance(limits, Mapping) else asdict(limits)
        self._spec = {
            "source": os.fspath(source),
            "options": {name: _spelled(value) for name, value in options.items()},
            "limits": bounds,
        }
        self._restarts, self._backoff, self._patience = restarts, backoff, patience or Patience()
        self._change = threading.Condition()
        self._numbers = itertools.count()
        self._running: dict[int, Running] = {}
        self._child: Child | None = None
        self._facts: Facts | None = None
        self._ready = self._draining = self._closed = False
        self._loading = True
        self._ready_since = 0.0
        self._why = "the engine is starting; try again in a moment"
        self._over: FlashJanusError | None = None
        self._before = self._now = Stats()
        self._thread = threading.Thread(target=self._supervise, name="flashjanus-supervisor", daemon=True)
        self._thread.start()
        if wait:
            try:
                self.wait_ready()
            except BaseException:
                self.close()
                raise

    @property
    def ready(self) -> bool:
        return self._ready and not self._draining

    @property
    def loading(self) -> bool:
        return self._loading and not self._draining

    @property
    def facts(self) -> Facts:
        if self._facts is None:
            raise UnavailableError(self._why)
        return self._facts

    @property
    def lost(self) -> FlashJanusError | None:
        """The error for which no engine will start any more; None while one may."""
        return self._over

    def stats(self) -> Stats:
        with self._change:
            return added(self._before, self._now)

    def wait_ready(self, timeout: float | None = None) -> bool:
        """Whether the engine is ready within `timeout` seconds. Raises the error with which loading failed, or for
        which no engine will start any more."""
        with self._change:
            self._change.wait_for(lambda: self._ready or self._over is not None, timeout)
            if self._over is not None:
                raise self._over
            return self._ready

    def submit(self, request: Request, tell: Tell) -> Running:
        running = Running(next(self._numbers), tell)
        refused = self._send(request, running)
        if refused is not None:
            tell(Failure(refused))
        return running

    def _send(self, request: Request, running: Running) -> FlashJanusError | None:
        with self._change:
            if self._draining:
                return UnavailableError("the engine is shutting down and takes no more requests")
            if not self._ready or self._child is None:
                return UnavailableError(self._why)
            if not self._child.outbox.put({"submit": running.number, "request": request}, 1):
                return BusyError("too many requests wait to be read by the engine; try again later")
            self._running[running.number] = running
            return None

    def cancel(self, ticket: Running) -> None:
        with self._change:
            if self._running.pop(ticket.number, None) is not None and self._child is not None:
                self._child.outbox.put({"cancel": ticket.number})
            self._change.notify_all()

    def drain(self, timeout: float | None = None) -> bool:
        with self._change:
            self._draining = True
            return self._change.wait_for(lambda: not self._running, timeout)

    def close(self) -> None:
        self.drain(0)
        with self._change:
            self._closed = True
            if self._child is not None:
                self._child.wire.shut()
            self._change.notify_all()
        self._thread.join()

    def _supervise(self) -> None:
        short_slices()
        try:
            over = self._workers()
        except BaseException as error:
            if self._child is not None:
                self._child.end(killed=True)
            self._child, self._ready, self._loading = None, False, False
            self._lose("is no longer supervised")
            self._give_up(unexpected(error))
            raise
        self._give_up(over)

    def _workers(self) -> FlashJanusError:
        """Run one worker after another while one may still start. Returns the error for which none will."""
        loaded_once, young, unloaded = False, 0, 0
        while True:
            served, error = self._serve()
            loaded_once = loaded_once or served
            steady = served and time.monotonic() - self._ready_since > STEADY
            young, unloaded = 1 if steady else young + 1, 0 if served else unloaded + 1
            if self._closed:
                return UnavailableError("the engine was closed")
            if not loaded_once:
                return error
            if unloaded >= self._restarts:
                return UnavailableError(f"the engine is not restarted any more: {error}")
            delay = min(self._backoff * 2 ** (young - 1), SLOWEST)
            with self._change:
                if self._change.wait_for(lambda: self._closed, delay):
                    return UnavailableError("the engine was closed")
                LOG.warning("restarting the engine's process, %.1f s after it ended", delay)
                self._before = replace(self._before, restarts=self._before.restarts + 1)

    def _give_up(self, error: FlashJanusError) -> None:
        with self._change:
            self._over = error
            self._why = str(error) if isinstance(error, UnavailableError) else f"the engine is not available: {error}"
            self._change.notify_all()

    def _serve(self) -> tuple[bool, FlashJanusError]:
        """Run one worker until it has ended. Returns whether it loaded the model, and the error with which it ended."""
        LOG.info("loading %s", self._spec["source"])
        self._loading, self._loading_since = True, time.monotonic()
        try:
            child = Child(self._spec, self._patience, self._unsent)
        except FlashJanusError as error:
            self._loading = False
            return False, error
        with self._change:
            self._child = child
            if self._closed:
                child.wire.shut()
        told: FlashJanusError | None = None
        fault: FlashJanusError | None = None
        try:
            with closing(child.bodies()) as bodies:
                for body in bodies:
                    told = body.get("ends", told)
                    self._received(body)
        except FlashJanusError as error:
            fault = error
        served = self._ready
        with self._change:
            self._child, self._ready, self._loading = None, False, False
            self._why = "the engine has ended and is being restarted; try again in a moment"
        how = fate(child, told, fault)
        self._lose(how)
        return served, UnavailableError(f"the engine's process {how}") if served or told is None else told

    def _lose(self, how: str) -> None:
        """Fail all requests in progress."""
        with self._change:
            lost = [*self._running]
            counted = replace(self._now, queued=0, image_rows=0, answer_rows=0, prefix_bytes=0)
            self._before, self._now = added(self._before, counted), Stats()
            self._change.notify_all()
            closed = self._closed
        if not closed:
            LOG.error("the engine's process %s, with %d requests in progress", how, len(lost))
        words = "was closed during the request" if closed else f"ended during the request: it {how}"
        for number in lost:
            self._told(number, Failure(UnavailableError(f"the engine {words}; send it again")))

    def _received(self, body: Mapping[str, Any]) -> None:
        if "event" in body:
            self._told(body["of"], body["event"])
        elif "stats" in body:
            with self._change:
                self._now = body["stats"]
        elif "loaded" in body:
            with self._change:
                self._facts, self._ready, self._ready_since = body["loaded"], True, time.monotonic()
                self._loading = False
                self._change.notify_all()
            seconds = self._ready_since - self._loading_since
            LOG.info("%s is ready after %.1f s of loading", self._facts.name, seconds)

    def _told(self, number: int, event: Event) -> None:
        last = isinstance(event, LAST)
        with self._change:
            running = self._running.get(number)
            if running is None or running.ended:
                return
            running.ended = last
        self._say(running, event)
        if last:  # only after telling it, because drain waits for that
            with self._change:
                self._running.pop(number, None)
                self._change.notify_all()

    def _say(self, running: Running, event: Event) -> None:
        """Deliver an event. A listener that raises loses its own request and no other."""
        try:
            running.tell(event)
        except Exception:
            LOG.exception("a listener raised an error and gets no further events of its request")
            self.cancel(running)

    def _unsent(self, body: Mapping[str, Any], error: FlashJanusError) -> None:
        """Called on the outbox's thread."""
        if "submit" in body:
            self._told(body["submit"], Failure(error))


def _spelled(value: Any) -> Any:
    """Convert an option for JSON: a path becomes text, and a torch dtype or device its name."""
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    return str(value).removeprefix("torch.") if type(value).__module__ == "torch" else value


def added(one: Stats, other: Stats) -> Stats:
    """Add the figures of a worker to those of its predecessors."""
    own = {field.name: getattr(one, field.name) for field in fields(Stats)}
    for name, value in own.items():
        more = getattr(other, name)
        if isinstance(value, Mapping):
            pairs = {key: (value.get(key, (0, 0)), more.get(key, (0, 0))) for key in {**value, **more}}
            own[name] = {key: (a + c, b + d) for key, ((a, b), (c, d)) in pairs.items()}
        else:
            own[name] = value + more
    return Stats(**own)
