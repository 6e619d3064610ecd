"""Records where the time of runs goes: within `recording`, every executor that runs is timed node by node.

On a CPU, a node's time is that of its call. On a GPU, it is the time between two events: around each node where nodes
are launched one by one, around the whole graph where one is replayed. Each run is waited for, so that host and device
never overlap.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from contextvars import ContextVar
from dataclasses import dataclass, field
from functools import cached_property
from typing import Any, Protocol

import torch

from ..plan import Plan
from .cuda import Gpu, Replay

Call = Callable[[], None]
Scope = Callable[[], AbstractContextManager[Any]]


@dataclass(frozen=True)
class Span:
    """Seconds on a request's clock: the beginning, and the duration."""

    begin: float
    seconds: float


@dataclass(frozen=True)
class Run(Span):
    """One run of one plan. marks: beginnings and ends of its nodes, or of the one graph that was replayed."""

    plan: Plan
    replayed: bool
    marks: Sequence[tuple[float, float]]

    @cached_property
    def nodes(self) -> list[Span]:
        """A span for each of the plan's nodes, or a single one for the graph. Built on request, not during the run."""
        return [Span(begin, end - begin) for begin, end in self.marks]

    @property
    def between(self) -> float:
        """Seconds of the run outside its nodes: the walk itself and, on a GPU, launching and waiting."""
        return self.seconds - sum(node.seconds for node in self.nodes)


class TimedEvent(Protocol):
    """A point in a stream that has a time."""

    def record(self, stream: Any) -> None: ...

    def synchronize(self) -> None: ...

    def elapsed_time(self, end: Any) -> float:
        """Milliseconds to `end`."""
        ...


def cuda_event() -> TimedEvent:
    return torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]


@dataclass
class Recorder:
    """Runs in the order in which they happen. `nvtx`: also mark programs and nodes for NVIDIA's tools."""

    nvtx: bool = False
    event: Callable[[], TimedEvent] = cuda_event
    runs: list[Run] = field(default_factory=list)
    now: Callable[[], float] = time.perf_counter

    def run(
        self,
        plan: Plan,
        calls: Sequence[Call],
        alone: Scope,
        replay: Replay | None,
        gpu: Gpu | None,
    ) -> None:
        """What `Executor.run` does, but timed: `replay`, or the calls one by one within alone()."""
        begin = self.now()
        steps, scope = (calls, alone) if replay is None else ([replay], nullcontext)
        if self.nvtx:
            labels = [node.label for node in plan.nodes] if replay is None else ["replay"]
            steps = [_in_range(label, step) for label, step in zip(labels, steps, strict=True)]
        with torch.cuda.nvtx.range(plan.name) if self.nvtx else nullcontext():
            marks = self._on_cpu(steps, scope) if gpu is None else self._on_gpu(steps, scope, gpu)
        self.runs.append(Run(begin, self.now() - begin, plan, replay is not None, marks))

    def _on_cpu(self, steps: Sequence[Call], scope: Scope) -> list[tuple[float, float]]:
        now, marks = self.now, []
        with scope():
            for step in steps:
                begin = now()
                step()
                marks.append((begin, now()))
        return marks

    def _on_gpu(self, steps: Sequence[Call], scope: Scope, gpu: Gpu) -> list[tuple[float, float]]:
        """Beginnings and ends of all marks, shifted so that the last one ends when the host saw it end."""
        stream = gpu.driver.stream()
        events = [self.event() for _ in range(len(steps) + 1)]
        with scope():
            events[0].record(stream)
            for step, event in zip(steps, events[1:], strict=True):
                step()
                event.record(stream)
        events[-1].synchronize()
        end = self.now()
        times = [end - event.elapsed_time(events[-1]) / 1e3 for event in events]
        return list(itertools.pairwise(times))


_active: ContextVar[Recorder | None] = ContextVar("recorder", default=None)
active = _active.get
"""The recorder of this thread or task, or None."""


@contextmanager
def recording(recorder: Recorder) -> Iterator[Recorder]:
    """Within it, runs of executors in this thread or task are recorded by `recorder`."""
    token = _active.set(recorder)
    try:
        yield recorder
    finally:
        _active.reset(token)


def _in_range(label: str, call: Call) -> Call:
    def named() -> None:
        with torch.cuda.nvtx.range(label):
            call()

    return named
