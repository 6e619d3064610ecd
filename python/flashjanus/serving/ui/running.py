"""Tracks the request that each tab of a session is running; it ends with the Cancel button or when its page is
closed."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from contextlib import asynccontextmanager
from typing import Any

FRAME = 0.1
"""Seconds between checks for changes; faster changes are shown together."""
BEAT = 0.5
"""Seconds after which something is sent even without a change, because gradio notices only then that nobody listens."""


class Running:
    def __init__(self) -> None:
        self._tasks: dict[tuple[str, str], asyncio.Task[None]] = {}

    @asynccontextmanager
    async def task(self, session: str, tab: str, work: Coroutine[Any, Any, None]) -> AsyncIterator[asyncio.Task[None]]:
        """Run `work` as a task that ends no later than the block."""
        key = session, tab
        self.cancel(*key)
        task = self._tasks[key] = asyncio.create_task(work)
        try:
            yield task
        finally:
            task.cancel()
            if self._tasks.get(key) is task:
                del self._tasks[key]
            await asyncio.wait({task})

    def cancel(self, session: str, tab: str) -> None:
        task = self._tasks.get((session, tab))
        if task is not None:
            task.cancel()

    @property
    def idle(self) -> bool:
        """Whether no session runs anything."""
        return not self._tasks

    def leave(self, session: str) -> None:
        """Cancel a session's requests when its page is closed."""
        for key in [key for key in self._tasks if key[0] == session]:
            self.cancel(*key)


async def frames(task: asyncio.Task[None], seen: Callable[[], Any]) -> AsyncIterator[None]:
    """Yield whenever `seen` returns something new, until the task ends. Raises the task's error, unless the task was
    canceled."""
    last, at = object(), 0.0
    while not task.done():
        now = seen()
        if now != last or time.monotonic() - at >= BEAT:
            last, at = now, time.monotonic()
            yield
        await asyncio.wait({task}, timeout=FRAME)
    if not task.cancelled():
        task.result()
