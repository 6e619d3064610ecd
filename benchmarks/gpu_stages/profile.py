"""Kernels of a step, a token, the VAE and SigLIP by node, from torch.profiler's trace, and the gaps between them.

In a run kernel by kernel, each launch lies within its node's range on the host, and the trace ties a kernel to its
launch, which gives the kernel its node. A captured graph has one launch for all kernels, which run in nearly the same
order; these kernels are the ones that are timed, and they are named by aligning both sequences. All programs share one
session of the profiler, because later sessions in a process may see no kernels at all. The raw trace is kept beside the
results.
"""

from __future__ import annotations

import gzip
import json
import re
import tempfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from difflib import SequenceMatcher
from functools import partial
from pathlib import Path
from typing import Any

import torch
from flashjanus.engine.plan import PlannedNode
from flashjanus.engine.runtime.executor import Executor
from flashjanus.execution import flow, text
from flashjanus.execution.runner import Runner

from .book import Found
from .budget import Notes
from .workload import SAMPLING, Workload

WARM = 3
NAME = 70
"""The number of characters of a kernel's name that are kept: cuBLAS names its tile in the first ones."""
ON_GPU = ("kernel", "gpu_memcpy", "gpu_memset")
LAUNCHES = ("cuda_runtime", "cuda_driver")
NODE, GRAPH, LEAD = "node ", "graph ", "lead-in"
"""Names of ranges on the host: a node's launches, a graph's launch, and what only wakes the profiler."""
Events = Iterable[Mapping[str, Any]]


@dataclass(frozen=True)
class Kernel:
    """One kernel, copy or fill on the GPU; times in us. range: the range in which it was launched."""

    name: str
    begin: float
    took: float
    range: str | None = None


def kernels(events: Events) -> list[Kernel]:
    """The events of a Chrome trace, in the GPU's order."""
    events = [event for event in events if event.get("ph") == "X"]
    ranges = [event for event in events if event.get("cat") == "user_annotation"]
    launched = {
        event["args"]["correlation"]: event
        for event in events
        if event.get("cat") in LAUNCHES and "correlation" in event.get("args", {})
    }

    def within(event: Mapping[str, Any]) -> str | None:
        launch = launched.get(event.get("args", {}).get("correlation"))
        if launch is None:
            return None
        held = [r for r in ranges if r["ts"] <= launch["ts"] <= r["ts"] + r["dur"]]
        return min(held, key=lambda r: r["dur"])["name"] if held else None  # the innermost

    found = [
        Kernel(str(event["name"]), float(event["ts"]), float(event["dur"]), within(event))
        for event in events
        if event.get("cat") in ON_GPU
    ]
    return sorted(found, key=lambda kernel: kernel.begin)


def of_program(row: Sequence[Kernel], program: str) -> tuple[list[Kernel], list[Kernel]]:
    """The kernels that a program's nodes launched, with only nodes as ranges, and the kernels of its graph."""
    prefix = f"{NODE}{program}: "
    launched = [replace(k, range=k.range.removeprefix(prefix)) for k in row if k.range and k.range.startswith(prefix)]
    return launched, [k for k in row if k.range == f"{GRAPH}{program}"]


def named(captured: Sequence[Kernel], launched: Sequence[Kernel]) -> tuple[list[Kernel], float]:
    """The captured kernels with the nodes of the matching launched kernels, and the share that has a match."""
    names = [[k.name for k in row] for row in (captured, launched)]
    nodes: list[str | None] = [None] * len(captured)
    for block in SequenceMatcher(None, *names, autojunk=False).get_matching_blocks():
        nodes[block.a : block.a + block.size] = [k.range for k in launched[block.b : block.b + block.size]]
    found = [replace(k, range=node) for k, node in zip(captured, nodes, strict=True)]
    return found, sum(node is not None for node in nodes) / max(len(nodes), 1)


def table(row: Sequence[Kernel]) -> list[Found]:
    """Times by node, without its layer's number, and by kernel, the largest sum first; in us for all calls together.

    gap: the time between a kernel's end and the next one's beginning; an overlap is a negative gap.
    """
    lines: dict[tuple[str, str], Found] = {}
    for kernel, following in zip(row, [*row[1:], None], strict=True):
        node = re.sub(r"\d+", "*", kernel.range or "?")
        line = lines.setdefault(
            (node, kernel.name[:NAME]), {"node": node, "kernel": kernel.name[:NAME], "calls": 0, "us": 0.0, "gap": 0.0}
        )
        line["calls"] += 1
        line["us"] += kernel.took
        line["gap"] += following.begin - kernel.begin - kernel.took if following is not None else 0.0
    return sorted(lines.values(), key=lambda line: -line["us"])


def summed(row: Sequence[Kernel], program: str) -> Found:
    """The kernels of one program: those of its graph or, if the trace has none, those that were launched one by one."""
    launched, captured = of_program(row, program)
    if not launched and not captured:
        return {"failed": "the profiler saw no kernel"} if torch.cuda.is_available() else {"kernels": 0}
    shown, share = named(captured, launched) if captured else (launched, 1.0)
    busy = sum(kernel.took for kernel in shown)
    span = max(kernel.begin + kernel.took for kernel in shown) - shown[0].begin
    found = {"kernels": len(shown), "busy_us": busy, "span_us": span, "captured": bool(captured), "named": share}
    return found | {"table": table(shown)}


def walk(program: str, executor: Executor) -> None:
    """A walk in which the launches of every node lie in a range with its name."""
    ranges: list[AbstractContextManager[Any]] = [nullcontext()]

    def choose(node: PlannedNode) -> None:
        ranges[0].__exit__(None, None, None)
        by = node.implementation.name
        ranges[0] = torch.profiler.record_function(f"{NODE}{program}: {node.label} ({node.op} by {by})")
        ranges[0].__enter__()

    executor.walk(choose)
    ranges[0].__exit__(None, None, None)


def run(work: Workload, notes: Notes) -> None:
    """Fill `notes.rows` by program, and write the trace beside the results."""
    programs = {"flow step": step, "token": token, "VAE": vae, "SigLIP": siglip}
    found: dict[str, list[Kernel]] = {}

    def traced() -> Found:
        ready = {name: [make(work, work.runner(graphs)) for graphs in (False, True)] for name, make in programs.items()}
        file = notes.book.path.with_suffix(".trace.json.gz")
        found["all"] = kernels(trace(ready, work.clock.synchronize, file))
        return {"kernels": len(found["all"]), "trace": file.name}

    notes.measure("trace", traced)
    for name in programs:
        if "all" in found:
            notes.measure(name, partial(summed, found["all"], name))


def trace(ready: Mapping[str, Sequence[Executor]], synchronize: Callable[[], object], file: Path) -> Events:
    """The events of every program's walk and of its graph."""
    for pair in ready.values():
        for executor in pair:
            for _ in range(WARM):
                executor.run()
    synchronize()
    activities = [torch.profiler.ProfilerActivity.CPU]
    if torch.cuda.is_available():
        activities.append(torch.profiler.ProfilerActivity.CUDA)
    with torch.profiler.profile(activities=activities) as profiler:
        with torch.profiler.record_function(LEAD):
            next(iter(ready.values()))[0].run()
        synchronize()
        for name, (launched, captured) in ready.items():
            walk(name, launched)
            synchronize()
            with torch.profiler.record_function(f"{GRAPH}{name}"):
                captured.run()
            synchronize()
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "trace.json"
        profiler.export_chrome_trace(str(path))
        file.write_bytes(gzip.compress(path.read_bytes(), 6))
        events: Events = json.loads(path.read_text())["traceEvents"]
    return events


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
