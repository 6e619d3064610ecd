"""What follows from each of several things that a thread does in a row, and is worth doing once after all of them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

LOG = logging.getLogger(__name__)
_OURS = threading.local()
"""calls: of the thread that is `together`, in order."""


@contextmanager
def together() -> Iterator[None]:
    """Calls for `afterward` on this thread are made when this ends, each once; one that raises keeps no other from it,
    nor the thread from what it does next."""
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
                LOG.exception("what was to follow could not be done")


def afterward(call: Callable[[], None]) -> None:
    """Make this call when all is done that is done `together`; where nothing is, now."""
    calls = getattr(_OURS, "calls", None)
    if calls is None:
        call()
    else:
        calls[call] = None
