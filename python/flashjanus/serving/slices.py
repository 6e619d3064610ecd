"""How long a thread waits for a core that another program's, or the engine's, threads have.

Linux (since 6.12) lets a thread that wakes go before one that asked for longer slices of time; otherwise it waits for
the end of the other's slice, some milliseconds, at each hand that a token passes through: the engine's threads compute
without a pause. A thread's share of the time stays what it is. Other systems have no such request.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

SHORT = 100_000
"""Nanoseconds, the least that is taken."""
CALLS = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""Number of sched_setattr by machine."""
ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""Of a thread: size, policy, flags, nice, priority, runtime, deadline, period."""


def short_slices() -> None:
    """From now on the calling thread, and those that it starts, ask for short slices."""
    _ask(SHORT)


def usual_slices() -> None:
    """Undo that, whoever started the calling thread."""
    _ask(0)


def _ask(nanoseconds: int) -> None:
    """A request that may be refused: nothing depends on it but time."""
    call = CALLS.get(platform.machine())
    if sys.platform != "linux" or call is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    asked = ATTRIBUTES.pack(ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, nanoseconds, 0, 0)
    ctypes.CDLL(None).syscall(call, 0, asked, 0)
