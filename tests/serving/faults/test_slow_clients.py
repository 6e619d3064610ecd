"""Clients that read nothing, send half, or stay away: others are served meanwhile, and they are let go of in time."""

from __future__ import annotations

import time
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from flashjanus.scheduling import Limits
from flashjanus.serving.http import run
from flashjanus.serving.http.connections import Seen
from serving_app import SECONDS, Served, served
from serving_clients import CHAT, IMAGES, SHORT, Raw, until_idle

LARGE: dict[str, Any] = {**SHORT, "n": 4, "size": "2048x2048"}
"""More than all buffers between a server and its client hold."""
PATIENCE = 1.0


@pytest.fixture(scope="module")
def server() -> Iterator[Served]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(run, "KEEP_ALIVE", PATIENCE)
        patch.setattr(run, "LEAVE", PATIENCE)
        with served(Limits(images=8), stall=PATIENCE, body_seconds=2 * PATIENCE, drain=1.0) as one:
            yield one


def connections(server: Served) -> int:
    return len(server.server.server_state.connections)


def until_alone(server: Served) -> None:
    """Until no connection is left."""
    end = time.monotonic() + SECONDS / 2
    while connections(server):
        assert time.monotonic() < end, f"{connections(server)} connections are still open"
        time.sleep(0.05)


@pytest.mark.parametrize("stream", [True, False])
def test_a_client_that_reads_nothing_is_let_go_of(server: Served, stream: bool) -> None:
    with Raw(server, receive_buffer=4096) as stalled:
        stalled.post(IMAGES, {**LARGE, "stream": stream, **({"partial_images": 2} if stream else {})})
        stalled.until(b" 200 ")
        reply = httpx.post(f"{server.url}{IMAGES}", json=SHORT, timeout=SECONDS)
        assert reply.status_code == 200
        until_idle(server)
        until_alone(server)


@pytest.mark.parametrize(
    ("left", "busy", "stuck_at"),
    [
        ([9, 9, 9, 9, 9, 9], True, 4),  # nothing is taken
        ([9, 8, 7, 6, 5, 4, 3], True, None),  # slowly
        ([9, 9, 9, 8, 8, 8, 7], True, None),  # with rests
        ([2, 9, 9, 5, 9, 9, 5, 9], True, None),  # and more is sent meanwhile
        ([0, 0, 0, 0, 0, 0], True, None),  # an image is drawn for it
        ([0, 0, 0, 0, 0, 0], False, 5),  # no request comes
        ([9, 8, 7, 6, 5, 4, 3], False, None),  # the rest of a reply is taken
        ([5, 4, 0, 0, 0, 0, 0, 0], False, 6),
    ],
)
def test_only_where_nothing_moves_is_a_connection_stuck(left: list[int], busy: bool, stuck_at: int | None) -> None:
    """Looked at each second, with a patience of 3 s for its client to read, and of 4 s for it to ask."""
    seen = Seen(0, 0.0, 0.0)
    found = [seen.stuck(float(second), size, busy, 3.0, 4.0) for second, size in enumerate(left)]
    assert (found.index(True) if True in found else None) == stuck_at


@pytest.mark.parametrize(
    "sent", [b"", b"POST /v1/images", b"GET /health/live HTTP/1.1\r\nHost: x\r\n\r\nG", b"PRI * HTTP/2.0\r\n"]
)
def test_a_connection_without_a_whole_head_is_let_go_of(server: Served, sent: bytes) -> None:
    with Raw(server) as idle:
        idle.socket.sendall(sent)
        assert idle.ended
    until_alone(server)


def test_half_a_body_is_waited_for_as_long_as_is_said(server: Served) -> None:
    with Raw(server) as half:
        half.post(CHAT, {"messages": [{"role": "user", "content": "Why?"}]}, part=0.5)
        assert b"body_timeout" in half.until(b"body_timeout")
        assert half.received.startswith(b"HTTP/1.1 408")


@pytest.mark.parametrize("part", [0.0, 0.5, 0.99])
def test_half_a_body_of_a_client_that_left_is_no_request(server: Served, part: float) -> None:
    with Raw(server) as half:
        half.post(IMAGES, SHORT, part=part)
        time.sleep(PATIENCE / 10)
    until_alone(server)
    until_idle(server)


def test_many_slow_clients_hold_no_other_up(server: Served) -> None:
    slow = [Raw(server, receive_buffer=4096) for _ in range(16)]
    try:
        for number, one in enumerate(slow):
            one.post(IMAGES, {**SHORT, "size": "2048x2048", "stream": True}, part=number % 2 or 0.5)
        for path in ("/health/live", "/health/ready", "/v1/models", "/metrics"):
            assert httpx.get(server.url + path, timeout=SECONDS).status_code == 200
        assert httpx.post(server.url + IMAGES, json=SHORT, timeout=SECONDS).status_code == 200
        until_idle(server)
        until_alone(server)
    finally:
        for one in slow:
            one.reset()
