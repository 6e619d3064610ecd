"""Takes turns at the cores: threads that run plans on a CPU at once use no more threads in total than there are cores.

With GNU's OpenMP runtime, every calling thread has a team of its own, so N callers would use N times as many threads as
one. Here they take turns, plan by plan, in the order in which they asked.
"""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Turns:
    """`cores` to share out. A forked child starts with none of them taken."""

    def __init__(self, cores: int) -> None:
        self._reset(cores)
        if hasattr(os, "register_at_fork"):
            os.register_at_fork(after_in_child=lambda: self._reset(cores))

    def _reset(self, cores: int) -> None:
        self.cores, self._free = cores, cores
        self._lock = threading.Lock()
        self._waiting: deque[tuple[int, threading.Lock]] = deque()
        self._here = threading.local()
        self._callers = 0
        self.several = False
        """Whether calls of several threads have ever been in progress at once."""

    @contextmanager
    def call(self) -> Iterator[None]:
        """Within it, this thread makes a call, which takes turns."""
        with self._lock:
            self._callers += 1
            self.several = self.several or self._callers > 1
        try:
            yield
        finally:
            with self._lock:
                self._callers = max(0, self._callers - 1)  # a forked child began at 0 within this call

    @contextmanager
    def turn(self, threads: int, handing_over: Callable[[], object]) -> Iterator[None]:
        """Within it, this thread may use `threads` cores, or as many as there are. Nested within another turn of the
        same thread, it does nothing. `handing_over` is called before it waits and, if other threads make calls, also
        at the end."""
        if getattr(self._here, "has", False):
            yield
            return
        wanted = max(1, min(threads, self.cores))
        self._take(wanted, handing_over)
        self._here.has = True
        try:
            yield
        finally:
            self._here.has = False
            if self._callers > 1:
                handing_over()
            self._give(wanted)

    def _take(self, wanted: int, waits: Callable[[], object]) -> None:
        with self._lock:
            if not self._waiting and self._free >= wanted:
                self._free -= wanted
                return
            given = threading.Lock()
            given.acquire()
            self._waiting.append((wanted, given))
        try:
            waits()
            given.acquire()
        except BaseException:  # e.g. KeyboardInterrupt: pass the turn on
            with self._lock:
                was_given = (wanted, given) not in self._waiting
                if not was_given:
                    self._waiting.remove((wanted, given))
            self._give(wanted if was_given else 0)
            raise

    def _give(self, cores: int) -> None:
        with self._lock:
            self._free += cores
            while self._waiting and self._free >= self._waiting[0][0]:
                wanted, given = self._waiting.popleft()
                self._free -= wanted
                given.release()


TURNS = Turns(len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1)
"""The turns of this process."""
