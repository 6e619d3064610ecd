"""Ends connections on which nothing moves, for which uvicorn itself would wait for ever."""

from __future__ import annotations

import asyncio
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any

from flashjanus.serving.http.logs import LOG

LOOKS = 20
"""Times that a connection is looked at within the shorter patience: a client that takes something has less left at some
of them, also where more is sent to it meanwhile."""


@dataclass
class Seen:
    """Of a connection: bytes that wait for its client, since when it has taken none of them, and since when there is no
    request on it."""

    left: int
    taken: float
    asked: float

    def stuck(self, now: float, left: int, busy: bool, stall: float, idle: float) -> bool:
        """Whether it has been so for too long, after another look. busy: there is a request on it."""
        if not left or left < self.left:
            self.taken = now
        if busy or left:
            self.asked = now
        self.left = left
        return now - self.taken > stall or now - self.asked > idle


async def end_stuck(connections: Collection[Any], stall: float, idle: float) -> None:
    """Watch uvicorn's connections until cancelled. One is aborted where its client takes nothing of what is sent to it
    for `stall` seconds (closing would wait until it does), or where there is no whole head of a request for `idle`
    seconds (a byte that arrives ends uvicorn's own patience)."""
    seen: dict[Any, Seen] = {}
    while True:
        await asyncio.sleep(min(stall, idle) / LOOKS)
        now = asyncio.get_running_loop().time()
        seen = {one: seen.get(one) or Seen(0, now, now) for one in [*connections]}
        for one, before in seen.items():
            left = one.transport.get_write_buffer_size()
            busy = one.cycle is not None and not one.cycle.response_complete
            if before.stuck(now, left, busy, stall, idle):
                LOG.info("a connection is stuck", extra={"fields": {"unsent": left, "client": one.client}})
                one.transport.abort()
