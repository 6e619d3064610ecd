"""Collects calls that follow from several actions of a thread, and makes each once after all of the actions."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOG = logging.getLogger(__name__)
_OURS = threading.local()
"""calls: the pending calls of a thread that is in a `together` block, in order."""


@contextmanager
def together() -> Iterator[None]:
    """Make the calls that were passed to `afterward` on this thread when the block ends, each once. A call that
    raises stops neither the other calls nor the thread."""
    calls: dict[Callable[[], None], None] = {}
    _OURS.calls = calls
    try:
        yield
    finally:
        _OURS.calls = None
        for call in calls:
            try:
                call()
            except Exception:
                LOG.exception("a deferred call raised an error")


def afterward(call: Callable[[], None]) -> None:
    """Make this call at the end of the current `together` block; outside of one, make it now."""
    calls = getattr(_OURS, "calls", None)
    if calls is None:
        call()
    else:
        calls[call] = None
