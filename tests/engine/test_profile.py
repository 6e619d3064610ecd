"""The recorder under executors: every node timed, nothing recorded or changed outside of it."""

from __future__ import annotations

import itertools
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from flashjanus.engine.graph import Graph
from flashjanus.engine.plan import lower
from flashjanus.engine.runtime.cuda import Gpu
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.runtime.profile import Recorder, Run, active, recording
from flashjanus.engine.specs import Dim, TensorSpec
from gpu_stand_in import StandInDriver

F32 = torch.float32
LABELS = ["y", "silu", "gelu"]


def mlp() -> Graph:
    g = Graph("mlp", {"w": TensorSpec((64, 64), F32)})
    y = g.add("linear", g.input("x", (Dim.symbol("R"), 64), F32), g.weight("w"), None, label="y")
    g.output("gelu", g.add("gelu", g.add("silu", y)))
    return g


def executor(gpu: Gpu | None = None) -> Executor:
    made = Executor(lower(mlp(), {"R": 48}), {"w": torch.eye(64)}, gpu=gpu)
    made.inputs["x"].copy_(torch.randn(48, 64, generator=torch.Generator().manual_seed(0)))
    return made


def test_a_recorded_run_computes_the_same_and_times_every_node() -> None:
    ready = executor()
    ready.run()
    expected = ready.outputs["gelu"].clone()
    ready.outputs["gelu"].zero_()
    with recording(Recorder()) as recorder:
        ready.run()
        ready.run()
    assert torch.equal(ready.outputs["gelu"], expected)
    first, second = recorder.runs
    assert first.plan is ready.plan
    assert [len(run.nodes) for run in recorder.runs] == [3, 3]
    assert not first.replayed
    assert first.begin + first.seconds <= second.begin
    for run in recorder.runs:
        moments = [m for node in run.nodes for m in (node.begin, node.begin + node.seconds)]
        inside = [run.begin, *moments, run.begin + run.seconds]
        assert all(a <= b + 1e-9 for a, b in itertools.pairwise(inside)), inside
        assert all(node.seconds > 0 for node in run.nodes)


def test_a_slow_node_is_found() -> None:
    ready, clock = executor(), [0.0]

    def slow() -> None:
        clock[0] += 5.0

    ready.calls[1] = slow
    with recording(Recorder(now=lambda: clock[0])) as recorder:
        ready.run()
    (run,) = recorder.runs
    assert [node.seconds for node in run.nodes] == [0.0, 5.0, 0.0]
    assert (run.seconds, run.between) == (5.0, 0.0)


def test_nothing_is_recorded_outside_of_the_context_or_in_another_thread() -> None:
    ready = executor()
    with recording(Recorder()) as outer:
        with recording(Recorder()) as inner:
            ready.run()
        thread = threading.Thread(target=ready.run)
        thread.start()
        thread.join()
    ready.run()
    assert (len(outer.runs), len(inner.runs)) == (0, 1)
    assert active() is None


def test_an_error_in_a_run_ends_the_recording() -> None:
    ready = executor()

    def fails() -> None:
        raise RuntimeError("node failed")

    ready.calls[2] = fails
    with pytest.raises(RuntimeError, match="node failed"), recording(Recorder()) as recorder:
        ready.run()
    assert recorder.runs == []
    assert active() is None


class Event:
    """A CUDA event of a device that takes 2 ms from each event to the next."""

    made = 0

    def __init__(self) -> None:
        Event.made += 1
        self.place, self.waited = Event.made, False

    def record(self, stream: Any) -> None:
        self.stream = stream

    def synchronize(self) -> None:
        self.waited = True

    def elapsed_time(self, end: Event) -> float:
        assert self.stream == end.stream
        return 2.0 * (end.place - self.place)


def gpu_run(graphs: bool) -> Run:
    """Of an executor on a GPU that is not there: its host clock stands still at 1 s."""
    ready = executor(Gpu(StandInDriver(), graphs))
    ready.capture()
    with recording(Recorder(event=Event, now=lambda: 1.0)) as recorder:
        ready.run()
    (run,) = recorder.runs
    return run


def test_nodes_on_a_gpu_are_timed_by_events() -> None:
    run = gpu_run(graphs=False)
    assert not run.replayed
    assert [node.seconds for node in run.nodes] == pytest.approx([2e-3] * 3)
    assert [node.begin for node in run.nodes] == pytest.approx([1 - 6e-3, 1 - 4e-3, 1 - 2e-3])


def test_a_replayed_graph_is_one_span() -> None:
    run = gpu_run(graphs=True)
    assert run.replayed
    assert [node.seconds for node in run.nodes] == pytest.approx([2e-3])


@pytest.mark.parametrize(("graphs", "names"), [(False, ["mlp", *LABELS]), (True, ["mlp", "replay"])])
def test_nvtx_names_programs_and_nodes(monkeypatch: pytest.MonkeyPatch, graphs: bool, names: list[str]) -> None:
    seen, open_ranges = [], []

    @contextmanager
    def marked(name: str) -> Iterator[None]:
        seen.append(name)
        open_ranges.append(name)
        yield
        assert open_ranges.pop() == name

    monkeypatch.setattr(torch.cuda.nvtx, "range", marked)
    ready = executor(Gpu(StandInDriver(), graphs))
    ready.capture()
    with recording(Recorder(nvtx=True, event=Event)):
        ready.run()
    assert seen == names
    assert open_ranges == []
