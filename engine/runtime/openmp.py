"""The OpenMP runtime that torch and the native kernels share, whose teams must be as large as torch assumes.

oneDNN cuts a product into omp_get_max_threads() parts and gives one to each thread of a team. If the runtime makes a
smaller team (a thread limit, dynamic adjustment, no active level left), the other parts are never computed: the product
is wrong, and no error is raised. A team of GNU's runtime does not survive a fork either: in the child, its threads are
waited for and never come. Nor may a thread end during a fork: while it ends it holds every lock of MKL's allocator, and
in the child those locks are never released.
"""

from __future__ import annotations

import ctypes
import os
import threading
import time
from collections import deque
from collections.abc import Callable
from contextlib import ExitStack
from functools import cache

import torch

from ..errors import DeviceError
from .turns import TURNS

SOFT = 1
"""omp_pause_soft in omp.h."""


class OpenMP:
    """The functions used of the runtime. All of them concern the calling thread."""

    def __init__(self, symbols: ctypes.CDLL) -> None:
        self.dynamic, self.set_dynamic = symbols.omp_get_dynamic, symbols.omp_set_dynamic
        self.set_num_threads, self.thread_limit = symbols.omp_set_num_threads, symbols.omp_get_thread_limit
        self.active_level, self.max_active_levels = symbols.omp_get_active_level, symbols.omp_get_max_active_levels
        self._pause = getattr(symbols, "omp_pause_resource_all", None)  # since OpenMP 5.0
        self.survives_forks = hasattr(symbols, "__kmpc_fork_call")  # LLVM's and Intel's runtimes start new threads then

    def team(self, threads: int) -> int:
        """The team size that the runtime gives when `threads` are requested without dynamic adjustment."""
        if self.active_level() >= self.max_active_levels():
            return 1
        return min(threads, int(self.thread_limit()))

    def end_team(self) -> bool:
        """End the threads of this thread's team; the next parallel region starts new ones. False if that is not
        possible."""
        return self._pause is not None and self._pause(SOFT) == 0


def end_team() -> None:
    """End the threads of this thread's team, to make room for those of another thread."""
    found = runtime()
    if found is not None and not found.survives_forks:
        found.end_team()


def on_one_thread(call: Callable[[], None]) -> None:
    """Run `call` such that everything torch computes in it stays on the calling thread."""
    found, threads = runtime(), torch.get_num_threads()
    if found is None:
        call()
        return
    found.set_num_threads(1)
    try:
        call()
    finally:
        found.set_num_threads(threads)


def _make_room() -> None:
    """After a call, if several threads make calls: end this thread's team. The runtime counts an idle team as threads
    that it manages, and if those outnumber the cores it puts other teams to sleep between any two loops."""
    if TURNS.several:
        end_team()


@cache
def runtime() -> OpenMP | None:
    """The OpenMP runtime that torch uses in this process, or None if there is none.

    torch loads its libraries with global symbols, so the runtime found is the one that torch itself finds, even if it
    was preloaded.
    """
    if os.name != "posix":
        return None
    try:
        return OpenMP(ctypes.PyDLL(None))
    except AttributeError:
        return None


def hold_team(scope: ExitStack) -> None:
    """Until `scope` ends, this thread's teams have the size that torch.get_num_threads() returns.

    Raises DeviceError if the threads of its team were left behind in another process.
    """
    found = runtime()
    if found is None:
        return
    scope.callback(_make_room)
    scope.enter_context(TURNS.call())
    if found.dynamic():
        found.set_dynamic(0)
        scope.callback(found.set_dynamic, 1)
    if not found.survives_forks and threading.current_thread() is not threading.main_thread():
        _ours.team = getattr(_ours, "team", None) or _ThreadTeam(found)
    threads = torch.get_num_threads()  # must come first: it gives a new thread the number set for the process
    team = found.team(threads)
    if team < threads:
        found.set_num_threads(team)
        scope.callback(found.set_num_threads, threads)
    if team > 1 and _left_behind(found):
        raise DeviceError(
            f"expected {team} threads, got a forked process in which they do not exist: it was forked without Python's "
            "fork hooks, or its OpenMP runtime cannot end its threads before a fork. Call "
            "torch.set_num_threads(1) in the child, start it by 'spawn', or make the call in a new thread"
        )


_teams_of = os.getpid()
"""The process to which the first thread's teams belong."""
_ours = threading.local()
"""Per thread: `team`, and during a fork, in the thread that forks, whether it `ended` its team."""
_gone: deque[int] = deque(maxlen=256)
"""Native ids of threads that made calls and have ended or are about to."""
LONGEST_END = 1.0
"""Seconds that a fork waits for a thread to end. There is a limit because another thread may have got its id."""


class _ThreadTeam:
    """The team of a thread other than the first. It ends before join() reports that the thread has ended."""

    def __init__(self, found: OpenMP) -> None:
        self._found = found

    def __del__(self) -> None:
        self._found.end_team()
        _gone.append(threading.get_native_id())


def _left_behind(found: OpenMP) -> bool:
    """True in a child's thread that came from its parent, with the parent's team. Other threads are newer."""
    here = os.getpid()
    return here != _teams_of and not found.survives_forks and threading.get_native_id() == here


def _before_fork() -> None:
    """Make parent and child each start a new team, and wait for threads that made calls and are now ending."""
    found = runtime()
    _ours.ended = found is not None and not found.survives_forks and found.end_team()
    latest = time.monotonic() + LONGEST_END
    while _gone:
        task = f"/proc/self/task/{_gone.popleft()}"
        while os.path.exists(task) and time.monotonic() < latest:
            time.sleep(1e-4)


def _after_fork_in_child() -> None:
    global _teams_of
    if _ours.ended:
        _teams_of = os.getpid()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(before=_before_fork, after_in_child=_after_fork_in_child)
