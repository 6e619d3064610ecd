"""Closes connections on which nothing moves; uvicorn itself would wait for them forever."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from flashjanus.serving.http.logs import LOG

LOOKS = 20
"""How often a connection is checked within the shorter time limit. A client that reads has fewer unsent bytes at
some of the checks, even if more data is sent to it meanwhile."""


@dataclass
class Seen:
    """A connection's state: unsent bytes, the time since which the client has read none of them, and the time since
    which no request is active."""

    left: int
    taken: float
    asked: float

    def stuck(self, now: float, left: int, busy: bool, stall: float, idle: float) -> bool:
        """Update the state and return whether the connection has been stuck for too long. busy: a request is active."""
        if not left or left < self.left:
            self.taken = now
        if busy or left:
            self.asked = now
        self.left = left
        return now - self.taken > stall or now - self.asked > idle


async def end_stuck(connections: Collection[Any], stall: float, idle: float) -> None:
    """Watch uvicorn's connections until canceled. A connection is aborted if its client reads nothing for `stall`
    seconds while data waits (closing would wait for the client), or if no complete request head arrives for `idle`
    seconds (any byte that arrives ends uvicorn's own timeout)."""
    seen: dict[Any, Seen] = {}
    while True:
        await asyncio.sleep(min(stall, idle) / LOOKS)
        now = asyncio.get_running_loop().time()
        seen = {one: seen.get(one) or Seen(0, now, now) for one in [*connections]}
        for one, before in seen.items():
            left = one.transport.get_write_buffer_size()
            busy = one.cycle is not None and not one.cycle.response_complete
            if before.stuck(now, left, busy, stall, idle):
                LOG.info("closing a stuck connection", extra={"fields": {"unsent": left, "client": one.client}})
                one.transport.abort()
