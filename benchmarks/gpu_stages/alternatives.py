"""Choices side by side: ways to draw all steps, every implementation of an op, and the settings that an implementation
names.

An op's alternatives are data beside it: its implementations, and the `tunables=` of each. Those of a stage are a line
of STAGES here. All alternatives are timed in turns, in one process, on the same values, with launches in one graph.
Weights and states (keys and values among them) have so many copies that each has left the L2 when its turn comes again.
Activations, which the previous kernel has just written, are not rotated. The forms that take most of an image, a token,
the VAE and SigLIP come first, by their operations and bytes; forms for which the seconds do not suffice are marked.
"""

from __future__ import annotations

import statistics
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from flashjanus.engine.ops import Implementation, Tunable, get_op
from flashjanus.engine.plan import Plan, PlannedNode
from flashjanus.engine.runtime.executor import Executor
from flashjanus.engine.runtime.isolation import EXACT_GPU_CONVOLUTIONS
from flashjanus.execution import flow

from .book import Found
from .budget import Notes
from .clock import summary
from .forms import Arguments, form, sizes, specs_of
from .workload import Workload

LONGEST, SHORTEST = 1e-3, 2e-6
"""Seconds. The first is roughly the time of all launches in a graph together; the second is the least that a launch
counts."""
TURNS = 3
CLEAR = 0.02
"""An alternative that saves less than this share of the time is not worth a change."""


@dataclass(frozen=True)
class Choice:
    """One way: an implementation, with another value of one of its settings unless `tunable` is None."""

    implementation: Implementation
    tunable: Tunable | None = None
    value: Any = None

    @property
    def name(self) -> str:
        if self.tunable is None:
            return self.implementation.name
        return f"{self.implementation.name}, {self.tunable.module}:{self.tunable.name}={self.value}"

    @contextmanager
    def inforce(self) -> Iterator[None]:
        if self.tunable is None:
            yield
            return
        before = self.tunable.get()
        self.tunable.set(self.value)
        try:
            yield
        finally:
            self.tunable.set(before)


def run(work: Workload, notes: Notes, ceilings: Mapping[str, float], l2: int) -> None:
    """Fill `notes.rows`. ceilings: "flops" and "bytes" per second."""
    for name, ways in STAGES.items():
        notes.measure(name, partial(side_by_side, work, ways), {"stage": name})
    with EXACT_GPU_CONVOLUTIONS:
        for it in ordered(work, ceilings):
            node = it.arguments.node
            about = dict(op=node.op, implementation=node.implementation.name, program=it.plan.name, node=node.label)
            about |= dict(calls=it.calls, sizes=sizes(node))
            notes.measure(form(node), partial(timed, work, it, ceilings, l2), about)


def side_by_side(work: Workload, ways: Mapping[str, Callable[[Workload], Callable[[], float]]]) -> Found:
    """Seconds of each way, timed in turns."""
    ready = {name: make(work) for name, make in ways.items()}
    samples: dict[str, list[float]] = {name: [] for name in ready}
    for _ in range(TURNS):
        for name, time in ready.items():
            samples[name].append(time())
    return {"choices": {name: {"time": summary(taken)} for name, taken in samples.items()}}


def step_by_step(work: Workload) -> Callable[[], float]:
    """All steps of one image, with one replay for each."""
    session = flow.FlowSession(work.runner(True), *work.flow_bucket(work.runner(True), 1))
    prepared = work.prepared(work.runner(True))

    def draw() -> None:
        for _ in range(work.sizes.steps):
            session.step()

    def time() -> float:
        work.join(session, prepared)
        work.clock.synchronize()
        return statistics.median(work.clock.spans(draw, 1))

    return time


def all_at_once(work: Workload) -> Callable[[], float]:
    """All steps of one image in one graph."""
    runner = work.runner(False)
    session = flow.FlowSession(runner, *work.flow_bucket(runner, 1))
    work.join(session, work.prepared(runner))

    def time() -> float:
        samples, captured = work.clock.launches(lambda i: session.flow.run(), work.sizes.steps, 1)
        if not captured and work.clock.captures:
            raise RuntimeError("no graph takes all steps: one of them waits for the device")
        return samples[0] * work.sizes.steps

    return time


STAGES: Mapping[str, Mapping[str, Callable[[Workload], Callable[[], float]]]] = {
    "all steps of one image": {"one replay a step": step_by_step, "one graph for all steps": all_at_once},
}


@dataclass(frozen=True)
class Met:
    """A form as the model uses it. calls: per request; least: seconds of all of them at the ceilings."""

    plan: Plan
    arguments: Arguments
    calls: int
    least: float


def ordered(work: Workload, ceilings: Mapping[str, float]) -> list[Met]:
    """The forms that more than one way serves, the most costly first. If one cannot run, those before it remain."""
    found: dict[str, Met] = {}
    for group in work.programs(largest=False):
        with suppress(Exception):  # the headline says what, in a row of its own
            for _, executor in group:
                executor.walk(partial(_met, work, ceilings, found, executor, Counter(map(form, executor.plan.nodes))))
    return sorted(found.values(), key=lambda it: -it.least)


def _met(
    work: Workload,
    ceilings: Mapping[str, float],
    found: dict[str, Met],
    executor: Executor,
    counts: Counter[str],
    node: PlannedNode,
) -> None:
    """Keep a node that is about to run, if it is the first of its form in its program."""
    of_request = {"flow_step": work.sizes.steps, "decode_step": work.sizes.new // 4}
    calls = counts.pop(form(node), 0) * of_request.get(executor.plan.name, 1)
    least = calls * lower_bound(node, ceilings)
    known = found.get(form(node))
    if calls and (known is None or known.least < least) and len(list(choices(executor.plan, node, work))) > 1:
        found[form(node)] = Met(executor.plan, Arguments(executor, node), calls, least)


def lower_bound(node: PlannedNode, ceilings: Mapping[str, float]) -> float:
    """Seconds of a call at the ceilings, and at least those of a launch."""
    return max(node.flops / ceilings["flops"], node.nbytes / ceilings["bytes"], SHORTEST)


def choices(plan: Plan, node: PlannedNode, work: Workload) -> Iterator[Choice]:
    """The ways to serve a node, the plan's own first."""
    op, specs = get_op(node.op), specs_of(node)
    others = [it for it in op.implementations.values() if it is not node.implementation]
    for it in (node.implementation, *others):
        if work.faults(op.name, it.name, specs, node.attrs) or it.refuses(plan.device, specs, node.attrs):
            continue
        yield Choice(it)
        for tunable in (tunable for tunable in it.tunables if tunable.decides(specs)):
            held = tunable.get()
            yield from (Choice(it, tunable, value) for value in tunable.values if value != held)


def timed(work: Workload, it: Met, ceilings: Mapping[str, float], l2: int) -> Found:
    """Time every choice that is right, in turns. `best` is set if one is clearly faster than the plan's."""
    arguments, node = it.arguments, it.arguments.node
    sets = arguments.copies(l2)
    calls = max(min(round(LONGEST / lower_bound(node, ceilings)), work.sizes.calls), len(sets))
    found: dict[str, Found] = {}
    right: dict[str, Choice] = {}
    for choice in choices(it.plan, node, work):
        try:
            with choice.inforce():
                share, why = arguments.wrong(choice.implementation)
        except Exception as error:  # a tile that does not fit, a library that this torch is built without
            share, why = 0.0, f"{type(error).__name__}: {str(error).strip()[:200]}"
        found[choice.name] = {"error": share} if why is None else {"failed": why}
        if why is None:
            right[choice.name] = choice
    samples: dict[str, list[float]] = {name: [] for name in right}
    for _ in range(TURNS):
        for name, choice in right.items():
            with choice.inforce():

                def launch(i: int, choice: Choice = choice) -> None:
                    choice.implementation.run(*sets[i % len(sets)], **node.attrs)

                taken, found[name]["captured"] = work.clock.launches(launch, calls, work.sizes.repeats)
            samples[name] += taken
    for name, taken in samples.items():
        time = summary(taken)
        rates = {"flops": node.flops / time["median_s"], "bytes": node.nbytes / time["median_s"]}
        share = max(rate / ceilings[unit] for unit, rate in rates.items())
        found[name] |= {"time": time, "tflops": rates["flops"] / 1e12, "gbps": rates["bytes"] / 1e9, "share": share}
    return {"choices": found, "copies": len(sets), **best(found, right, node.implementation.name)}


def best(found: Mapping[str, Found], right: Mapping[str, Choice], chosen: str) -> Found:
    """The fastest captured choice, if it is clearly faster than the plan's own."""
    times = {name: found[name]["time"]["median_s"] for name in right if found[name].get("captured")}
    if chosen not in times:
        return {}
    name = min(times, key=lambda it: times[it])
    if times[name] > (1 - CLEAR) * times[chosen]:
        return {}
    return {"best": name, "saves_s": times[chosen] - times[name]}
