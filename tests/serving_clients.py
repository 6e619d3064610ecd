"""HTTP clients that misbehave, and what a server still holds when they are gone."""

from __future__ import annotations

import gc
import json
import socket
import struct
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from flashjanus.scheduling.requests import Handle
from flashjanus.serving.async_engine import Stream
from flashjanus.serving.backend import Running
from flashjanus.serving.desk import Ticket
from serving_app import SECONDS, Served

IMAGES, CHAT, RESPONSES = "/v1/images/generations", "/v1/chat/completions", "/v1/responses"
LONG: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 1000, "stream": True}
"""An image that no test waits for."""
SHORT: dict[str, Any] = {"prompt": "a red circle", "num_inference_steps": 3, "seed": 5}
RESET = struct.pack("ii", 1, 0)


class Raw:
    """A connection, used byte by byte. Closing it resets it, as where a client's process is killed."""

    def __init__(self, server: Served, receive_buffer: int | None = None) -> None:
        parts = urlsplit(server.url)
        self.socket = socket.socket()
        if receive_buffer is not None:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
        self.socket.settimeout(SECONDS)
        assert parts.hostname is not None
        assert parts.port is not None
        self.socket.connect((parts.hostname, parts.port))
        self.received = b""

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *error: object) -> None:
        self.reset()

    def reset(self) -> None:
        if self.socket.fileno() >= 0:
            self.socket.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, RESET)
            self.socket.close()

    def post(self, path: str, body: Mapping[str, Any], part: float = 1.0) -> None:
        """Send a request, or the first part of its body."""
        content = json.dumps(body).encode()
        head = ("POST " + path + " HTTP/1.1", "Host: x", "Content-Type: application/json")
        lines = "\r\n".join([*head, f"Content-Length: {len(content)}", "", ""])
        self.socket.sendall(lines.encode() + content[: int(part * len(content))])

    def until(self, words: bytes) -> bytes:
        """What comes, up to where it holds `words`, or the connection ends."""
        while words not in self.received:
            piece = self.socket.recv(65536)
            if not piece:
                break
            self.received += piece
        return self.received

    @property
    def ended(self) -> bool:
        """Whether the server ends the connection, after whatever else it sends."""
        while piece := self.socket.recv(65536):
            self.received += piece
        return True


def held(server: Served) -> dict[str, int]:
    """What a server holds of requests, by name, where it holds any."""
    stats, backend = server.engine.stats(), server.engine.backend
    found = {
        "requests": len(backend._running),  # type: ignore[attr-defined]
        "queued": stats.queued,
        "image rows": stats.image_rows,
        "answer rows": stats.answer_rows,
        "sessions": backend._model.runner.leased,  # type: ignore[attr-defined]
    }
    return {name: count for name, count in found.items() if count}


def until_idle(server: Served) -> None:
    """Wait until nothing is held."""
    end = time.monotonic() + SECONDS
    while found := held(server):
        assert time.monotonic() < end, f"after {SECONDS} s the server still holds {found}"
        time.sleep(0.02)


def until_drawn(server: Served, evaluations: int) -> None:
    """Until there have been so many evaluations more."""
    first, end = server.engine.stats().turns.get("evaluation", (0, 0.0))[0], time.monotonic() + SECONDS
    while server.engine.stats().turns.get("evaluation", (0, 0.0))[0] < first + evaluations:
        assert time.monotonic() < end
        time.sleep(0.01)


def objects() -> dict[str, int]:
    """Objects of requests that something still refers to, by kind."""
    gc.collect()
    kinds = (Stream, Running, Ticket, Handle)
    found = [type(one) for one in gc.get_objects() if type(one) in kinds]
    return {kind.__name__: found.count(kind) for kind in kinds if kind in found}


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("no /proc here")
    return int(status.read_text().split()[1]) * 4096
