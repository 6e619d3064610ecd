"""One scheduler for all threads of a process: whoever waits for an event drives it, for the others as well."""

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
from flashjanus.scheduling.scheduler import Scheduler


class SharedScheduler(ProcessBound):
    """make(): the scheduler, when it is first needed, and again in a forked child."""

    def __init__(self, make: Callable[[], Scheduler]) -> None:
        self._make = make
        self._made: Scheduler | None = None
        self._began_anew()
        _ALL.add(self)

    def _began_anew(self) -> None:
        self._turn = threading.Condition()
        self._driven = False
        self._waiting = 0
        self._events: dict[Handle, deque[Event]] = {}

    @property
    def scheduler(self) -> Scheduler:
        if self._made is None:
            self._made = self._make()
        return self._made

    def serve(self, jobs: Sequence[Job]) -> Generator[Event, None, None]:
        """Submit jobs and give their events as they come, in order, until all have ended; those that are left when
        nobody asks for more events are cancelled. Raises what a job fails of."""
        events: deque[Event] = deque()
        with self._alone() as scheduler:
            handles = [scheduler.submit(job) for job in jobs]
            self._events.update(dict.fromkeys(handles, events))
        left = set(handles)
        try:
            while left:
                self._wait(events)
                event = events.popleft()
                if isinstance(event, Failed):
                    raise event.error
                if isinstance(event, Finished | Cancelled):
                    left.discard(event.handle)
                yield event
        finally:
            self._forget(handles)

    def paused(self, handle: Handle) -> tuple[torch.Tensor, tuple[torch.Tensor, torch.Tensor]]:
        """`Scheduler.latents` and `Scheduler.velocities`."""
        with self._alone() as scheduler:
            return scheduler.latents(handle), scheduler.velocities(handle)

    def resume(self, handle: Handle, latents: torch.Tensor | None = None) -> None:
        """`Scheduler.resume`."""
        with self._alone() as scheduler:
            scheduler.resume(handle, latents)

    @contextmanager
    def _alone(self) -> Iterator[Scheduler]:
        with self._turn:
            self._waiting += 1
            while self._driven:
                self._turn.wait()
            self._waiting -= 1
            yield self.scheduler
            self._turn.notify_all()

    def _wait(self, events: deque[Event]) -> None:
        """Until there is an event; meanwhile this thread drives the scheduler, unless another does."""
        while not events:
            with self._turn:
                while not events and (self._driven or self._waiting or self.scheduler.waits):
                    self._turn.wait()
                if events:
                    return
                if not self.scheduler.busy:
                    raise DeviceError(
                        "expected the job to be served, but its process was forked in the midst of it: make the call "
                        "again in the child"
                    )
                self._driven = True
            told: list[Event] = []
            try:
                told = self.scheduler.step()
            finally:
                with self._turn:
                    self._driven = False
                    for event in told:
                        if event.handle in self._events:
                            self._events[event.handle].append(event)
                    self._turn.notify_all()

    def _forget(self, handles: Sequence[Handle]) -> None:
        with self._alone() as scheduler:
            for handle in handles:
                scheduler.cancel(handle)
                self._events.pop(handle, None)

    def forked(self) -> None:
        """In a child: the threads that drove the scheduler, and may have been in the midst of a step, are not here."""
        if self._made is not None and (self._driven or self._made.busy):
            self._made = None
        self._began_anew()


_ALL: WeakSet[SharedScheduler] = WeakSet()


def _forked() -> None:
    for shared in list(_ALL):
        shared.forked()


if hasattr(os, "register_at_fork"):
    os.register_at_fork(after_in_child=_forked)
