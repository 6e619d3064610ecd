"""One scheduler for all threads of a process: a thread that waits for an event drives it, on behalf of the others as
well."""

from __future__ import annotations

import os
import threading
from collections import deque
from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from weakref import WeakSet

import torch

from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.errors import DeviceError
from flashjanus.scheduling.requests import Cancelled, Event, Failed, Finished, Handle, Job
from flashjanus.scheduling.scheduler import Scheduler, is_told

DROPPED = 0.1
"""Seconds after which a waiting thread looks for dropped jobs, because not everyone who drops one can wake it."""


class SharedScheduler(ProcessBound):
    """Shares one scheduler. make() creates it when it is first needed, and again in a forked child.

    A stream may be dropped anywhere, even by the garbage collector in the middle of a step or while a thread holds the
    lock. The drop therefore only records the jobs, without waiting; the thread that has the turn cancels them.
    """

    def __init__(self, make: Callable[[], Scheduler]) -> None:
        self._make = make
        self._made: Scheduler | None = None
        self._began_anew()
        _ALL.add(self)

    def _began_anew(self) -> None:
        self._making = threading.Lock()
        self._turn = threading.Condition(threading.Lock())
        self._driven = False
        self._waiting = 0
        self._events: dict[Handle, deque[Event]] = {}
        self._dropped: deque[Handle] = deque()

    @property
    def scheduler(self) -> Scheduler:
        with self._making:
            if self._made is None:
                self._made = self._make()
            return self._made

    def serve(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """Submit jobs and yield their events in order as they arrive, until all jobs have ended. Closing the
        generator cancels those that are left. Raises the error with which a job fails."""
        events: deque[Event] = deque()
        handles: list[Handle] = []
        try:
            with self._alone() as scheduler:
                for job in jobs:
                    handles.append(scheduler.submit(job))
                    self._events[handles[-1]] = events
            left = set(handles)
            while left:
                self._wait(events)
                event = events.popleft()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished | Cancelled):
                    left.discard(event.handle)
                yield event
        finally:
            self._dropped.extend(handles)
            self._clear()

    def latents(self, handle: Handle) -> torch.Tensor:
        """`Scheduler.latents`."""
        with self._alone() as scheduler:
            return scheduler.latents(handle)

    def velocities(self, handle: Handle) -> tuple[torch.Tensor, torch.Tensor]:
        """`Scheduler.velocities`."""
        with self._alone() as scheduler:
            return scheduler.velocities(handle)

    def added(self, handle: Handle) -> tuple[torch.Tensor, torch.Tensor]:
        """`Scheduler.added`."""
        with self._alone() as scheduler:
            return scheduler.added(handle)

    def resume(self, handle: Handle, latents: torch.Tensor | None = None) -> None:
        """`Scheduler.resume`."""
        with self._alone() as scheduler:
            scheduler.resume(handle, latents)

    @contextmanager
    def _alone(self) -> Iterator[Scheduler]:
        try:
            with self._turn:
                self._waiting += 1
                try:
                    while self._driven:
                        self._turn.wait()
                finally:
                    self._waiting -= 1
                    self._turn.notify_all()  # once the lock is free
                yield self.scheduler
        finally:
            self._clear()

    def _wait(self, events: deque[Event]) -> None:
        """Wait for an event; meanwhile this thread drives the scheduler, unless another does."""
        while not events:
            driving, told = False, list[Event]()
            try:
                with self._turn:
                    while not events and (self._driven or self._waiting or self._waits()):
                        self._turn.wait(DROPPED)
                    if events:
                        return
                    if not self.scheduler.busy:
                        raise DeviceError(
                            "the process was forked while it served this job, and the child cannot finish it: make the "
                            "call again in the child"
                        )
                    driving = True
                    self._driven = True
                told = self.scheduler.step()
            except Exception as error:
                if not is_told(self.scheduler, error):  # else the jobs concerned raise it
                    raise
            finally:
                if driving:
                    with self._turn:
                        self._driven = False
                        for event in told:
                            if event.handle in self._events:
                                self._events[event.handle].append(event)
                        self._turn.notify_all()
                self._clear()

    def _waits(self) -> bool:
        self._cancel()
        return self.scheduler.waits

    def _cancel(self) -> None:
        """Cancel dropped jobs. The caller holds the lock, and nobody is driving the scheduler."""
        while self._dropped:
            handle = self._dropped.popleft()
            self._events.pop(handle, None)
            if self._made is not None:
                self._made.cancel(handle)

    def _clear(self) -> None:
        """Call `_cancel`, unless a thread has the turn; if it is this one, it cancels the jobs when its turn ends."""
        while self._dropped and not self._driven and self._turn.acquire(blocking=False):
            try:
                if not self._driven:
                    self._cancel()
                    self._turn.notify_all()
            finally:
                self._turn.release()

    def forked(self) -> None:
        """Reset after a fork: the threads that drove the scheduler, perhaps in the middle of a step, do not exist in
        the child."""
        if self._made is not None and (self._driven or self._made.busy):
            self._made = None
        self._began_anew()


_ALL: WeakSet[SharedScheduler] = WeakSet()


def _forked() -> None:
    for shared in list(_ALL):
        shared.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
