"""The engine in its own process, at the other end of its server's wire: `python -m flashjanus.serving.worker`.

The process exits as soon as its server has, even in the middle of work, because nobody is left to wait for it.
"""

from __future__ import annotations

import faulthandler
import logging
import os
import signal
import socket
import sys
import threading
import time
from collections.abc import Mapping
from typing import Any, NoReturn

from flashjanus.errors import DeviceError, FlashJanusError, InputError, UnavailableError
from flashjanus.serving.messages import LAST, Event, Failure, Images, Partial, Request, Step
from flashjanus.serving.outbox import Outbox
from flashjanus.serving.together import afterward
from flashjanus.serving.wire import Wire, WireError

UNREAD = 256 * 2**20
"""The most bytes of events that may wait for the server to read them."""
LIGHT = 1024
"""The bytes that an event without pictures counts as."""
PREVIEWS = 0.5
"""The share of UNREAD up to which Step and Partial events are sent."""
LOOK = 0.25
"""Seconds between checks of the engine's figures."""
FLUSH = 5.0
"""Seconds for the server to read the last messages."""
LOG = logging.getLogger(__name__)


class Worker:
    """Serves the requests that arrive over `wire`, until the wire ends."""

    def __init__(self, wire: Wire) -> None:
        self._wire, self._outbox = wire, Outbox(wire, UNREAD, self._unsent)
        self._tickets: dict[int, Any] = {}
        self._lock = threading.Lock()
        self._backend: Any = None

    def serve(self) -> NoReturn:
        """Load the model on the main thread, then report the engine's state."""
        try:
            body = self._wire.receive()
            if not (isinstance(body, dict) and "load" in body):
                raise WireError(f"expected a model to load, got {body!r:.80}")
            threading.Thread(target=self._read, name="flashjanus-wire", daemon=True).start()
            self._backend = loaded(body["load"])
        except (EOFError, OSError):
            os._exit(0)
        except FlashJanusError as error:
            self._end(error)
        except Exception as error:
            LOG.exception("the model could not be loaded")
            self._end(DeviceError(f"the model could not be loaded: {type(error).__name__}: {error}"))
        self._outbox.put({"loaded": self._backend.facts})
        stats = None
        while self._backend.ready:
            if stats != (stats := self._backend.stats()):
                self._outbox.replace("stats", {"stats": stats})
            time.sleep(LOOK)
        self._end(UnavailableError("the engine's thread has ended; its error is in the log"))

    def _end(self, error: FlashJanusError) -> NoReturn:
        self._outbox.put({"ends": error})
        self._outbox.close(FLUSH)
        os._exit(1)

    def _read(self) -> None:
        try:
            while True:
                self._receive(self._wire.receive())
        except (EOFError, OSError):
            os._exit(0)
        except BaseException as error:
            LOG.exception("a message of the server could not be read")
            self._end(error if isinstance(error, WireError) else WireError(f"{type(error).__name__}: {error}"))

    def _receive(self, body: Mapping[str, Any]) -> None:
        if "ping" in body:
            turn = None if self._backend is None else self._backend.turn
            self._outbox.replace("pong", {"pong": turn})
        elif "submit" in body:
            self._submit(body["submit"], body["request"])
        elif "cancel" in body:
            self._cancel(body["cancel"])
        else:
            raise WireError(f"expected a ping, a request or a cancellation, got {', '.join(body)}")

    def _submit(self, number: int, request: Request) -> None:
        with self._lock:
            self._tickets[number] = None
        ticket = self._backend.submit(request, lambda event: self._tell(number, event))
        with self._lock:
            going = number in self._tickets
            if going:
                self._tickets[number] = ticket
        if not going:
            self._backend.cancel(ticket)

    def _cancel(self, number: int) -> None:
        with self._lock:
            ticket = self._tickets.pop(number, None)
        if ticket is not None:
            self._backend.cancel(ticket)

    def _tell(self, number: int, event: Event) -> None:
        """Send an event; called on a thread of the engine, which never waits for the server to read. If the outbox
        is full, previews are dropped first; then a request fails if its events find no room."""
        with self._lock:
            if number not in self._tickets:
                return
        previews = isinstance(event, Step | Partial)
        share = PREVIEWS if previews else 1.0
        sent = self._outbox.put({"event": event, "of": number}, weight(event), share, wake=False)
        afterward(self._outbox.flush)
        if isinstance(event, LAST) and sent:
            with self._lock:
                self._tickets.pop(number, None)
        elif not (sent or previews):
            self._fail(
                number, UnavailableError("the server does not keep up with the results of this request; send it again")
            )

    def _fail(self, number: int, error: FlashJanusError) -> None:
        self._cancel(number)
        self._outbox.put({"event": Failure(error), "of": number})

    def _unsent(self, body: Mapping[str, Any], error: FlashJanusError) -> None:
        self._fail(body["of"], error)


def weight(event: Event) -> int:
    """The approximate size of an event in bytes."""
    pictures = event.images if isinstance(event, Images | Partial) else ()
    return LIGHT + sum(picture.nbytes for picture in pictures)


def loaded(spec: Mapping[str, Any]) -> Any:
    """Create a ThreadBackend for the requested model. Raises whatever `JanusFlow.from_pretrained` raises."""
    import inspect

    from flashjanus.api.janusflow import JanusFlow
    from flashjanus.scheduling.policy import Limits
    from flashjanus.serving.backend import ThreadBackend

    try:
        inspect.signature(JanusFlow.from_pretrained).bind(spec["source"], **spec["options"])
        limits = None if spec["limits"] is None else Limits(**spec["limits"])
    except TypeError as error:
        raise InputError(f"expected options of JanusFlow.from_pretrained and fields of Limits: {error}") from error
    return ThreadBackend(JanusFlow.from_pretrained(spec["source"], **spec["options"]), limits)


def watch(parent: int) -> None:
    """Exit when the server does, even if a forked child of the server keeps the wire open."""
    while os.getppid() == parent:
        time.sleep(1.0)
    os._exit(0)


def main() -> NoReturn:
    """Run a worker. The arguments are the descriptor of the wire and the process id of the server."""
    # A terminal's Ctrl-C and a service manager's SIGTERM reach all processes; the server decides what they mean.
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.SIG_IGN)
    faulthandler.enable()
    logging.basicConfig(format="%(asctime)s %(levelname)s worker %(name)s: %(message)s")
    descriptor, parent = map(int, sys.argv[1:])
    os.set_inheritable(descriptor, False)  # child processes must not keep the wire open
    threading.Thread(target=watch, args=(parent,), name="flashjanus-server-watch", daemon=True).start()
    Worker(Wire(socket.socket(fileno=descriptor))).serve()


if __name__ == "__main__":
    main()
