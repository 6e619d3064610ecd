"""Short time slices for threads, which shorten their wait for a core that another program or the engine occupies.

Linux (since 6.12) lets a waking thread preempt one that asked for longer slices. Otherwise it waits for the end of the
other's slice, some milliseconds, at every hand-over of a token between threads, because the engine's threads compute
without a pause. A thread's share of the time does not change. Other systems have no such request.
"""

from __future__ import annotations

import ctypes
import os
import platform
import struct
import sys

SHORT = 100_000
"""The length of a short slice in nanoseconds, the smallest that Linux accepts."""
CALLS = {"x86_64": 314, "aarch64": 274, "riscv64": 274}
"""The number of the system call sched_setattr, by machine."""
ATTRIBUTES = struct.Struct("=IIQiIQQQ")
"""The attributes of a thread: size, policy, flags, nice, priority, runtime, deadline, period."""


def short_slices() -> None:
    """Ask for short slices for the calling thread and for those that it starts from now on."""
    _ask(SHORT)


def usual_slices() -> None:
    """Undo `short_slices` for the calling thread, whichever thread started it."""
    _ask(0)


def _ask(nanoseconds: int) -> None:
    """Ask for slices of this length. The request may be refused; only latency depends on it."""
    call = CALLS.get(platform.machine())
    if sys.platform != "linux" or call is None or os.sched_getscheduler(0) != os.SCHED_OTHER:
        return
    nice = os.getpriority(os.PRIO_PROCESS, 0)
    asked = ATTRIBUTES.pack(ATTRIBUTES.size, os.SCHED_OTHER, 0, nice, 0, nanoseconds, 0, 0)
    ctypes.CDLL(None).syscall(call, 0, asked, 0)
