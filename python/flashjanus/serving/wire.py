"""The wire between a server and its engine's process: frames of JSON and raw buffers, decoded into a closed set of
types."""

from __future__ import annotations

import json
import select
import socket
import struct
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from dataclasses import fields
from itertools import accumulate, islice, pairwise
from typing import Any, TypeAlias

import numpy as np

from flashjanus import errors
from flashjanus.errors import DeviceError, FlashJanusError, InputError
from flashjanus.serving import messages

MAGIC = b"FJW1"
HEAD = struct.Struct("<4sIQ")
"""The head of a frame: the magic, the bytes of JSON, and the bytes of all buffers."""
MOST_JSON = 64 * 2**20
MOST_BYTES = 2 * 2**30
"""The largest size of a frame in bytes."""
DEEPEST = 64
"""The deepest nesting of lists and objects."""
AT_ONCE = 2**16
"""The bytes to receive at once: enough for all frames that have arrived meanwhile, except large ones."""
MOST_PARTS = 512
"""The most parts to send at once; systems accept 1024."""
TICK = 0.5
"""Seconds of silence after which `receive` lets its caller look around."""
NUMBERS = "buif"
"""The kinds of numpy dtypes that can be sent."""
TYPES: dict[str, type[Any]] = {
    kind.__name__: kind
    for kind in (
        *(messages.ImageRequest, messages.ChatRequest, messages.Usage, messages.Accepted, messages.Begun),
        *(messages.Step, messages.Partial, messages.Logprob, messages.Piece, messages.Images, messages.Answered),
        *(messages.Failure, messages.Facts, messages.Stats),
    )
}
FIELDS = {kind: tuple(one.name for one in fields(kind)) for kind in TYPES.values()}
PLAIN = frozenset((str, bool, int, float, type(None)))
"""Types that JSON holds unchanged."""
Parts: TypeAlias = list[Any]
"""The bytes and memoryviews of a frame."""
Place: TypeAlias = "tuple[Place, str] | None"
"""Where a value is. It is formatted only for errors, because a frame is made for every token."""
_json = json.JSONEncoder(separators=(",", ":")).encode


class WireError(DeviceError):
    """The data that arrived over the wire is not a valid frame."""


def frame(body: Any) -> Parts:
    """Encode `body` as bytes. Raises InputError if it cannot be sent or is too large."""
    buffers: Parts = []
    packed = _pack(body, None, buffers, 0)
    try:
        text = _json([packed, [len(buffer) for buffer in buffers]]).encode()
    except ValueError as error:  # an integer of thousands of digits
        raise InputError(f"the request cannot be sent to the engine: {error}") from error
    size = sum(map(len, buffers))
    if len(text) > MOST_JSON or size > MOST_BYTES:
        raise InputError(
            f"expected at most {MOST_JSON} bytes of text and {MOST_BYTES} of images in a request or its result, got "
            f"{len(text)} and {size}; send less at once"
        )
    return [HEAD.pack(MAGIC, len(text), size) + text, *buffers]


def _pack(value: Any, place: Place, buffers: Parts, depth: int) -> Any:
    kind = type(value)
    if kind in PLAIN:
        return value
    if depth > DEEPEST:
        raise InputError(f"{_words(place):.200}: expected at most {DEEPEST} nested lists and objects")
    if kind in FIELDS:
        own = {name: _pack(getattr(value, name), (place, f".{name}"), buffers, depth + 1) for name in FIELDS[kind]}
        return {"t": [kind.__name__, own]}
    if isinstance(value, Mapping):
        for name in value:
            if not isinstance(name, str):
                raise InputError(f"{_words(place)}: expected names that are strings, got {name!r:.80}")
        return {"d": {name: _pack(one, (place, f".{name}"), buffers, depth + 1) for name, one in value.items()}}
    if isinstance(value, str | bool | int | float):
        return value
    if isinstance(value, np.generic):
        return _pack(value.item(), place, buffers, depth + 1)
    if isinstance(value, bytes | bytearray | memoryview):
        buffers.append(memoryview(value).cast("B") if len(value) else b"")
        return {"b": len(buffers) - 1}
    if isinstance(value, np.ndarray) and value.dtype.kind in NUMBERS:
        buffers.append(np.ascontiguousarray(value).reshape(-1).view(np.uint8).data if value.size else b"")
        return {"a": [len(buffers) - 1, value.dtype.str, list(value.shape)]}
    if isinstance(value, FlashJanusError):
        return {"e": [kind.__name__, str(value)]}
    if isinstance(value, Sequence):
        items = [_pack(one, (place, f"[{n}]"), buffers, depth + 1) for n, one in enumerate(value)]
        return {"u": items} if isinstance(value, tuple) else items
    raise InputError(
        f"{_words(place)}: expected a value that can be sent to the engine's process (text, numbers, lists, images), "
        f"got {kind.__name__}"
    )


def _words(place: Place) -> str:
    steps = list[str]()
    while place is not None:
        place, step = place
        steps.append(step)
    return "".join(reversed(steps)).removeprefix(".") or "the request"


def body_of(text: bytes, data: memoryview) -> Any:
    """Decode a frame from its JSON and its buffers. Raises WireError."""
    try:
        packed, sizes = json.loads(text)
        ends = [*accumulate(sizes, initial=0)]
        if min(sizes, default=0) < 0 or ends[-1] != len(data):
            raise ValueError(f"buffers of {sizes} bytes, {len(data)} in all")
        return _unpack(packed, [data[low:high] for low, high in pairwise(ends)])
    except (ValueError, TypeError, LookupError, RecursionError) as error:
        raise WireError(f"expected a frame of this protocol, got one with {type(error).__name__}: {error}") from error


def _unpack(packed: Any, buffers: Sequence[memoryview]) -> Any:
    if isinstance(packed, list):
        return [_unpack(one, buffers) for one in packed]
    if not isinstance(packed, dict):
        return packed
    [(kind, held)] = packed.items()
    if kind == "d":
        return {name: _unpack(one, buffers) for name, one in held.items()}
    if kind == "t":
        name, own = held
        return TYPES[name](**{one: _unpack(value, buffers) for one, value in own.items()})
    if kind == "u":
        return tuple(_unpack(one, buffers) for one in held)
    if kind == "b":
        return bytes(buffers[held])
    if kind == "a":
        number, dtype, shape = held
        if np.dtype(dtype).kind not in NUMBERS:
            raise ValueError(f"an array of {dtype}")
        return np.require(np.frombuffer(buffers[number], dtype).reshape(shape), requirements="A")
    if kind == "e":
        return _error(*held)
    raise ValueError(f"a value of kind {kind!r}")


def _error(name: str, message: str) -> FlashJanusError:
    """Rebuild an error, in its original class if that is one of ours."""
    found = getattr(errors, name, DeviceError) if name in errors.__all__ else DeviceError
    error: FlashJanusError = found(message)
    return error


class Wire:
    """A connected socket that carries whole frames. One thread at a time may send, and one may receive."""

    def __init__(self, connected: socket.socket) -> None:
        self._socket = connected
        self._poll = select.poll()
        self._poll.register(connected, select.POLLIN)
        self._buffer = memoryview(bytearray(AT_ONCE))
        self._held = self._buffer[:0]

    def send(self, parts: Parts, wait: bool = True) -> Parts:
        """Send the parts and return those that are left: none, or without `wait` those that the system has no room
        for. Raises OSError once nobody receives."""
        left = deque(memoryview(part).cast("B") for part in parts if len(part))
        flags = 0 if wait else socket.MSG_DONTWAIT
        while left:
            try:
                count = self._socket.sendmsg([*islice(left, MOST_PARTS)], [], flags)
            except BlockingIOError:
                break
            while left and count >= len(left[0]):
                count -= len(left.popleft())
            if count:
                left[0] = left[0][count:]
        return [*left]

    @property
    def holds(self) -> bool:
        """Whether the next frame has arrived completely."""
        if len(self._held) < HEAD.size:
            return False
        _, text, size = HEAD.unpack_from(self._held)
        return len(self._held) >= HEAD.size + int(text) + int(size)

    def receive(self, look: Callable[[bool], None] = lambda heard: None) -> Any:
        """Return the body of the next frame. look: called with True when bytes arrive, and with False after each
        TICK without any. Raises WireError, and EOFError at the end."""
        magic, text, size = HEAD.unpack(self._read(HEAD.size, look))
        if magic != MAGIC or text > MOST_JSON or size > MOST_BYTES:
            raise WireError(f"expected a frame of this protocol, got one that begins with {magic!r}, {text}, {size}")
        return body_of(bytes(self._read(text, look)), self._read(size, look))

    def _read(self, size: int, look: Callable[[bool], None]) -> memoryview:
        whole = memoryview(bytearray(size))
        left = whole
        while left:
            if len(left) >= AT_ONCE and not self._held:
                left = left[self._received(left, look) :]
                continue
            if not self._held:
                self._held = self._buffer[: self._received(self._buffer, look)]
            count = min(len(left), len(self._held))
            left[:count] = self._held[:count]
            left, self._held = left[count:], self._held[count:]
        return whole

    def _received(self, into: memoryview, look: Callable[[bool], None]) -> int:
        while not self._poll.poll(TICK * 1000):
            look(False)
        count = self._socket.recv_into(into)
        if not count:
            raise EOFError("the other process has closed the wire")
        look(True)
        return count

    def shut(self) -> None:
        """Signal the end to both sides, even if other processes hold the socket."""
        try:
            self._socket.shutdown(socket.SHUT_RDWR)
        except OSError:  # the other side has closed already
            return

    def close(self) -> None:
        self._socket.close()
