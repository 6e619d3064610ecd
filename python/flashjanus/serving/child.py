"""A worker process as its server sees it: the server starts it, listens to it, notices when it dies or hangs, and
ends it."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Generator, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from flashjanus.errors import FlashJanusError, UnavailableError
from flashjanus.serving.outbox import Outbox, Unsent
from flashjanus.serving.portable import portable
from flashjanus.serving.together import together
from flashjanus.serving.wire import TICK, Parts, Wire, WireError, frame

UNSENT = 4096
"""The most messages that may wait for the worker to read them."""
GRACE = 5.0
"""Seconds that a worker gets to exit by itself."""


@dataclass(frozen=True)
class Patience:
    """Time limits in seconds. heartbeat: how long a worker may be silent, although one of its threads does nothing
    but answer pings. turn: how long its engine may take for one turn, which is an evaluation, a token of all
    answers, or the making of a plan."""

    heartbeat: float = 60.0
    turn: float = 900.0


class Pulse:
    """Decides from a worker's messages whether it is alive. Time in which the server itself was stopped does not
    count."""

    def __init__(self, patience: Patience, clock: Callable[[], float] = time.monotonic) -> None:
        self._patience, self._clock = patience, clock
        self._looked, self._silent, self._stuck = clock(), 0.0, 0.0
        self._turn: int | None = None

    def heard(self) -> None:
        self._silent = 0.0

    def works(self, turn: int | None) -> None:
        """Note the turn that the worker's engine reports; None means that it waits for work."""
        if turn is None or turn != self._turn:
            self._stuck = 0.0
        self._turn = turn

    def due(self) -> bool:
        """Whether another TICK has passed. Raises UnavailableError if the worker is silent or stuck."""
        passed = self._clock() - self._looked
        if passed < TICK:
            return False
        self._looked += passed
        counted = min(passed, 2 * TICK)
        self._silent += counted
        self._stuck += 0.0 if self._turn is None else counted
        if self._silent > self._patience.heartbeat:
            raise UnavailableError(f"did not answer for {self._patience.heartbeat:g} s")
        if self._stuck > self._patience.turn:
            raise UnavailableError(f"spent {self._patience.turn:g} s in one turn of work")
        return True


class Child:
    """A worker, started on creation. Raises UnavailableError if the system cannot start one."""

    def __init__(self, spec: Mapping[str, Any], patience: Patience, unsent: Unsent) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            try:
                self.process = started(theirs.fileno())
            except OSError as error:
                ours.close()
                raise UnavailableError(f"the engine's process could not be started: {error}") from error
        self.wire, self._pulse = Wire(ours), Pulse(patience)
        self.outbox = Outbox(self.wire, UNSENT, unsent, encoded)
        self.outbox.put({"load": spec})

    def bodies(self) -> Generator[Mapping[str, Any], None, None]:
        """Yield the worker's messages until it ends. Raises WireError, and UnavailableError if the worker is silent
        or stuck."""
        try:
            while True:
                body = self.wire.receive(self._look)
                with together():
                    yield from self._read(body)
                    while self.wire.holds:
                        yield from self._read(self.wire.receive(self._look))
        except (EOFError, OSError):
            return

    def _read(self, body: Any) -> Iterator[Mapping[str, Any]]:
        if not isinstance(body, dict):
            raise WireError(f"expected a message, got {body!r:.80}")
        if "pong" in body:
            self._pulse.works(body["pong"])
        else:
            yield body

    def _look(self, heard: bool) -> None:
        if heard:
            self._pulse.heard()
        if self._pulse.due():
            self.outbox.replace("ping", {"ping": 0})

    def end(self, killed: bool = False) -> str:
        """Let the worker end, and return in words how it ended."""
        self.wire.shut()
        if not killed:
            try:
                self.process.wait(GRACE)
            except subprocess.TimeoutExpired:
                killed = True
        if killed:
            self.process.kill()
        code = self.process.wait()
        self.outbox.close(GRACE)
        self.wire.close()
        return ending(code)


def encoded(body: Mapping[str, Any]) -> Parts:
    """Encode a message to a worker."""
    return frame({**body, "request": portable(body["request"])} if "request" in body else body)


def started(descriptor: int) -> subprocess.Popen[bytes]:
    """Start a worker that holds the other end of the wire; whatever it or a library prints goes to stderr."""
    return subprocess.Popen(
        [sys.executable, "-m", "flashjanus.serving.worker", str(descriptor), str(os.getpid())],
        stdin=subprocess.DEVNULL,
        stdout=2,
        pass_fds=[descriptor],
        env={**os.environ, "PYTHONSAFEPATH": "1"},  # keeps files in the working folder from being imported as modules
    )


def ending(code: int) -> str:
    """Describe a process's exit code."""
    if code >= 0:
        return f"exited with status {code}"
    known = {one.value: one.name for one in signal.Signals}
    hint = " (as the system does when memory runs out)" if -code == signal.SIGKILL else ""
    return f"was killed by {known.get(-code, f'signal {-code}')}{hint}"


def fate(child: Child, told: FlashJanusError | None, error: FlashJanusError | None) -> str:
    """Describe what became of a worker that has ended. told: the error that it reported; error: the one that its
    server met."""
    how = child.end(killed=error is not None)
    if error is not None:
        broken = "sent a malformed message: " if isinstance(error, WireError) else ""
        return f"{broken}{error}, and was killed"
    return how if told is None else f"{how}: {told}"
