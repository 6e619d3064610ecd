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
            if not left or left < before.left:
                before.taken = now
            if one.cycle is not None and not one.cycle.response_complete:
                before.asked = now
            before.left = left
            if now - before.taken > stall or (not left and now - before.asked > idle):
                LOG.info("a connection is stuck", extra={"fields": {"unsent": left, "client": one.client}})
                one.transport.abort()
