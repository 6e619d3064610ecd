"""Kernels of a step, a token, the VAE and SigLIP by node, from torch.profiler's trace, and the gaps between them.

Launched kernel by kernel, each launch lies within its node's range on the host, and the trace ties a kernel to its
launch: so kernels get their nodes. A captured graph has one launch for all of them, in the same order; its kernels are
the ones that are timed, and named by that order.
"""

from __future__ import annotations

import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flashjanus.engine.runtime.executor import Executor
from flashjanus.pipeline import flow, text
from flashjanus.pipeline.runner import Runner

from .book import Found
from .budget import Notes
from .workload import SAMPLING, Workload

WARM = 3
NAME = 70
"""Letters of a kernel's name that are kept: cuBLAS has its tile in the first ones."""
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
RANGE = "node "


@dataclass(frozen=True)
class Kernel:
    """One kernel, copy or fill on the GPU; times in us. node: what launched it, where that is known."""

    name: str
    begin: float
    took: float
    node: str | None = None


def kernels(events: Iterable[Mapping[str, Any]]) -> list[Kernel]:
    """Of a Chrome trace, in the GPU's order."""
    events = [event for event in events if event.get("ph") == "X"]
    ranges = [event for event in events if event.get("cat") == "user_annotation" and event["name"].startswith(RANGE)]
    launched = {
        event["args"]["correlation"]: event
        for event in events
        if event.get("cat") in LAUNCHES and "correlation" in event.get("args", {})
    }

    def node(event: Mapping[str, Any]) -> str | None:
        launch = launched.get(event.get("args", {}).get("correlation"))
        if launch is None:
            return None
        within = (r["name"].removeprefix(RANGE) for r in ranges if r["ts"] <= launch["ts"] <= r["ts"] + r["dur"])
        return next(within, None)

    found = [
        Kernel(str(event["name"]), float(event["ts"]), float(event["dur"]), node(event))
        for event in events
        if event.get("cat") in ON_GPU
    ]
    return sorted(found, key=lambda kernel: kernel.begin)


def named(captured: Sequence[Kernel], launched: Sequence[Kernel]) -> list[Kernel]:
    """The captured kernels with the nodes of the launched ones, where both are the same row of kernels."""
    same = [k.name for k in captured] == [k.name for k in launched]
    return [Kernel(k.name, k.begin, k.took, launched[i].node if same else k.node) for i, k in enumerate(captured)]


def table(row: Sequence[Kernel]) -> list[Found]:
    """By node without its layer's number and by kernel, the longest in all first; us of all calls together.

    gap: between a kernel's end and the next one's beginning, which overlap as a negative gap.
    """
    lines: dict[tuple[str, str], Found] = {}
    for kernel, following in zip(row, [*row[1:], None], strict=True):
        node = re.sub(r"\d+", "*", kernel.node or "?")
        line = lines.setdefault(
            (node, kernel.name[:NAME]), {"node": node, "kernel": kernel.name[:NAME], "calls": 0, "us": 0.0, "gap": 0.0}
        )
        line["calls"] += 1
        line["us"] += kernel.took
        line["gap"] += following.begin - kernel.begin - kernel.took if following is not None else 0.0
    return sorted(lines.values(), key=lambda line: -line["us"])


def summed(row: Sequence[Kernel], order: str) -> Found:
    """order: whose nodes the kernels have."""
    if not row:
        return {"failed": "the profiler saw no kernel"} if torch.cuda.is_available() else {"kernels": 0}
    busy = sum(kernel.took for kernel in row)
    span = max(kernel.begin + kernel.took for kernel in row) - row[0].begin
    return {"kernels": len(row), "busy_us": busy, "span_us": span, "order": order, "table": table(row)}


def traced(run: Callable[[], object], synchronize: Callable[[], object]) -> list[Kernel]:
    """Kernels of one run, as the profiler saw them; without a GPU none."""
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        run()
        synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        return kernels(json.loads(path.read_text())["traceEvents"])


def by_node(executor: Executor) -> None:
    """A walk in which every node's launches lie in a range of its name."""
    ranges: list[AbstractContextManager[Any]] = [nullcontext()]

    def choose(node: Any) -> None:
        ranges[0].__exit__(None, None, None)
        ranges[0] = torch.profiler.record_function(f"{RANGE}{node.label} ({node.op} by {node.implementation.name})")
        ranges[0].__enter__()

    executor.walk(choose)
    ranges[0].__exit__(None, None, None)


def run(work: Workload, notes: Notes) -> None:
    """Fill `notes.rows` by program."""
    for name, make in (("flow step", step), ("token", token), ("VAE", vae), ("SigLIP", siglip)):
        notes.measure(name, partial(profiled, work, make), {"rows": 1})


def profiled(work: Workload, make: Callable[[Workload, Runner], Executor]) -> Found:
    row, names = [], []
    for graphs in (False, True):
        executor = make(work, work.runner(graphs))
        for _ in range(WARM):
            executor.run()
        work.clock.synchronize()
        row = traced(executor.run if graphs else partial(by_node, executor), work.clock.synchronize)
        names = names if graphs else row
    order = "the same as launched one by one" if len(row) == len(names) else "not that of the launches: no nodes"
    return summed(named(row, names), order)


def step(work: Workload, runner: Runner) -> Executor:
    session = flow.FlowSession(runner, *work.flow_bucket(runner, 1))
    work.join(session, work.prepared(runner))
    return session.flow


def token(work: Workload, runner: Runner) -> Executor:
    session = text.TextSession(runner, *work.chat_bucket(runner, 1))
    session.start(work.chat_requests(1, SAMPLING["sampled"]), None)
    return session.decode


def vae(work: Workload, runner: Runner) -> Executor:
    return work.decoder(runner)


def siglip(work: Workload, runner: Runner) -> Executor:
    return work.encoder(runner)
