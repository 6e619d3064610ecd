"""Messages that wait to be sent over a wire: they go out in order, from a thread of their own or from `flush`, and
their total is bounded."""

from __future__ import annotations

import logging
import threading
from collections import deque
from collections.abc import Callable
from typing import Any

from flashjanus.errors import FlashJanusError
from flashjanus.serving.messages import unexpected
from flashjanus.serving.wire import Parts, Wire, frame

LOG = logging.getLogger(__name__)
Unsent = Callable[[Any, FlashJanusError], None]


class Outbox:
    """`put` never blocks. unsent: called with a body that cannot be sent, and the reason, on the thread that sends.

    most: the largest sum of the weights that wait. encode: turns a body into bytes, on the outbox's thread or in
    `flush`.
    """

    def __init__(self, wire: Wire, most: int, unsent: Unsent, encode: Callable[[Any], Parts] = frame) -> None:
        self._wire, self._most, self._unsent, self._encode = wire, most, unsent, encode
        self._change = threading.Condition()
        self._bodies: deque[tuple[Any, int]] = deque()
        self._latest: dict[str, Any] = {}
        self._left: tuple[Parts, int] | None = None
        self._weight = 0
        self._closed = self._ended = self._writing = False
        self._thread = threading.Thread(target=self._write, name="flashjanus-outbox", daemon=True)
        self._thread.start()

    def put(self, body: Any, weight: int = 0, share: float = 1.0, wake: bool = True) -> bool:
        """Queue a body. Returns False if nobody receives any more, or if a body with a weight would raise the total
        above `share` of the limit. wake: if false, the body waits for `flush`."""
        with self._change:
            if self._ended or (weight and self._weight + weight > share * self._most):
                return False
            self._bodies.append((body, weight))
            self._weight += weight
            if wake:
                self._change.notify_all()
            return True

    def flush(self) -> None:
        """Send everything that waits on the calling thread, without blocking. The outbox's own thread, which
        otherwise keeps sleeping, sends what the system has no room for."""
        with self._change:
            if self._writing or self._left or self._ended:  # the thread sends what waits, or nothing is sent any more
                return
            parts, weight = list[Any](), 0
            while self._latest or self._bodies:
                body, own = self._taken()
                parts += self._encoded(body)
                weight += own
            try:
                left = self._wire.send(parts, wait=False)
            except OSError:
                self._end()
                return
            if left:
                self._left = left, weight
                self._change.notify_all()
            else:
                self._weight -= weight

    def replace(self, name: str, body: Any) -> None:
        """Queue a body that replaces an unsent one of the same name, and goes before all others."""
        with self._change:
            self._latest[name] = body
            self._change.notify_all()

    def close(self, timeout: float) -> None:
        """Send what waits, for at most `timeout` seconds, if the other side receives."""
        with self._change:
            self._closed = True
            self._change.notify_all()
        self._thread.join(timeout)

    def _write(self) -> None:
        while (taken := self._next()) is not None:
            parts, weight = taken
            try:
                self._wire.send(parts)
            except OSError:
                self._end()
                return
            with self._change:
                self._weight -= weight

    def _end(self) -> None:
        """Stop sending: nobody receives any more, and the reader of this wire notices that as well."""
        with self._change:
            self._ended = True
            self._bodies.clear()

    def _encoded(self, body: Any) -> Parts:
        """Encode a body. Returns nothing if it cannot be sent; `unsent` is called then."""
        try:
            return self._encode(body)
        except FlashJanusError as error:
            self._unsent(body, error)
        except Exception as error:
            LOG.exception("a message could not be encoded")
            self._unsent(body, unexpected(error))
        return []

    def _next(self) -> tuple[Parts, int] | None:
        with self._change:
            self._writing = False
            self._change.wait_for(lambda: self._left or self._latest or self._bodies or self._closed)
            if not (self._left or self._latest or self._bodies):
                return None
            self._writing = True
            if self._left:
                left, self._left = self._left, None
                return left
            body, weight = self._taken()
        return self._encoded(body), weight

    def _taken(self) -> tuple[Any, int]:
        return (self._latest.pop(next(iter(self._latest))), 0) if self._latest else self._bodies.popleft()
