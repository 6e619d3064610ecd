"""Threads that pass tokens on ask for short slices of time, and the engine's do not."""

from __future__ import annotations

import asyncio
import ctypes
import os
import platform
import sys
import threading
from collections.abc import Callable
from typing import TypeVar

import pytest
from flashjanus.serving.async_engine import Post
from flashjanus.serving.backend import ThreadBackend
from flashjanus.serving.slices import ATTRIBUTES, CALLS, SHORT, short_slices, usual_slices

T = TypeVar("T")
pytestmark = pytest.mark.skipif(
    sys.platform != "linux"
    or platform.machine() not in CALLS
    or tuple(map(int, platform.release().split(".")[:2])) < (6, 12),
    reason="Linux 6.12 or later",
)


def asked() -> tuple[int, int]:
    """What the calling thread asked for, in nanoseconds, and its nice value, as the system tells it."""
    found = ctypes.create_string_buffer(ATTRIBUTES.size)
    assert ctypes.CDLL(None).syscall(CALLS[platform.machine()] + 1, 0, found, ATTRIBUTES.size, 0) == 0
    _, _, _, nice, _, runtime, _, _ = ATTRIBUTES.unpack(found)
    return runtime, nice


def in_a_thread(work: Callable[[], T]) -> T:
    told = list[T]()
    thread = threading.Thread(target=lambda: told.append(work()))
    thread.start()
    thread.join()
    return told[0]


def usual() -> tuple[int, int]:
    usual_slices()
    return asked()


def test_threads_inherit_short_slices_and_may_undo_them() -> None:
    def short() -> list[tuple[int, int]]:
        short_slices()
        return [asked(), in_a_thread(asked), in_a_thread(usual)]

    nice = os.getpriority(os.PRIO_PROCESS, 0)
    own, inherited, undone = in_a_thread(short)
    assert own == inherited == (SHORT, nice)
    assert undone == in_a_thread(usual)
    assert undone[0] > SHORT
    assert undone[1] == nice


def test_a_loop_that_is_told_events_has_them_and_an_engine_started_from_it_has_not() -> None:
    found = list[tuple[int, int]]()

    class Seen(ThreadBackend):
        def __init__(self) -> None:  # nothing but its thread
            self._thread = threading.Thread(target=self._serve)
            self._thread.start()
            self._thread.join()

        def _work(self) -> bool:
            found.append(asked())
            return False

        def _lose(self, error: Exception) -> None:
            pass

    async def loop() -> tuple[int, int]:
        Post.here()
        await asyncio.to_thread(Seen)
        return asked()

    assert in_a_thread(lambda: asyncio.run(loop()))[0] == SHORT
    assert found == [in_a_thread(usual)]
