"""The OpenMP runtime that torch and the native kernels share: its teams must be as large as they are taken to be.

oneDNN cuts a product into omp_get_max_threads() parts and gives one to each thread of a team. Where the runtime makes a
smaller team (a thread limit, dynamic adjustment, no active level left), the other parts are never computed: the product
is wrong, and nothing says so. And a team of GNU's runtime does not outlive a fork: in the child its threads are waited
for and never come. Nor may a thread end during a fork: while it does, it holds every lock of MKL's allocator, and in
the child nobody opens them.
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
"""omp_pause_soft of omp.h."""


class OpenMP:
    """What is asked of the runtime. All of it is about the calling thread."""

    def __init__(self, symbols: ctypes.CDLL) -> None:
        self.dynamic, self.set_dynamic = symbols.omp_get_dynamic, symbols.omp_set_dynamic
        self.set_num_threads, self.thread_limit = symbols.omp_set_num_threads, symbols.omp_get_thread_limit
        self.active_level, self.max_active_levels = symbols.omp_get_active_level, symbols.omp_get_max_active_levels
        self._pause = getattr(symbols, "omp_pause_resource_all", None)  # since OpenMP 5.0
        self.survives_forks = hasattr(symbols, "__kmpc_fork_call")  # LLVM's and Intel's start new threads in the child

    def team(self, threads: int) -> int:
        """The size of the team that the runtime gives where `threads` are asked for and nothing is adjusted."""
        if self.active_level() >= self.max_active_levels():
            return 1
        return min(threads, int(self.thread_limit()))

    def end_team(self) -> bool:
        """End the threads of this thread's team, of which the next parallel region makes new ones; False if it cannot
        be done."""
        return self._pause is not None and self._pause(SOFT) == 0


def end_team() -> None:
    """End the threads of this thread's team: another thread's come in their place."""
    found = runtime()
    if found is not None and not found.survives_forks:
        found.end_team()


def on_one_thread(call: Callable[[], None]) -> None:
    """What torch computes in `call` stays on the calling thread."""
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
    """After a call, where several threads make calls: a team that waits for the next one counts as threads that the
    runtime manages, and where they are more than the cores it puts others' to sleep between any two loops."""
    if TURNS.several:
        end_team()


@cache
def runtime() -> OpenMP | None:
    """The one that this process's torch uses, or None where there is none.

    torch loads its libraries for all to see, so it is found where torch itself finds it, a preloaded one too.
    """
    if os.name != "posix":
        return None
    try:
        return OpenMP(ctypes.PyDLL(None))
    except AttributeError:
        return None


def hold_team(scope: ExitStack) -> None:
    """Until `scope` ends, this thread's teams have the size that torch.get_num_threads() says.

    Raises DeviceError where the threads of its team were left behind in another process.
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
    threads = torch.get_num_threads()  # first: it hands a new thread the number that was set for the process
    team = found.team(threads)
    if team < threads:
        found.set_num_threads(team)
        scope.callback(found.set_num_threads, threads)
    if team > 1 and _left_behind(found):
        raise DeviceError(
            f"expected to run on {team} threads, but this process was forked without Python's fork hooks, or its "
            "OpenMP runtime cannot end its threads before a fork, and they do not exist here. Call "
            "torch.set_num_threads(1) in the child, start it by 'spawn', or make the call in a new thread"
        )


_teams_of = os.getpid()
"""The process in which teams that the first thread meets are its own."""
_ours = threading.local()
"""What each thread has: `team`, and in one that forks whether it `ended` it."""
_gone: deque[int] = deque(maxlen=256)
"""Native ids of threads that made calls and have ended, or are about to."""
LONGEST_END = 1.0
"""Seconds that a fork waits for a thread to end: another one may have got its id."""


class _ThreadTeam:
    """The team of a thread other than the first, which ends before join() says that the thread has."""

    def __init__(self, found: OpenMP) -> None:
        self._found = found

    def __del__(self) -> None:
        self._found.end_team()
        _gone.append(threading.get_native_id())


def _left_behind(found: OpenMP) -> bool:
    """True in the thread of a child that was its parent's, with a team of the parent's. Other threads are newer."""
    here = os.getpid()
    return here != _teams_of and not found.survives_forks and threading.get_native_id() == here


def _before_fork() -> None:
    """Parent and child make a new team each; no thread that made calls is in the midst of its end."""
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
