"""Times every implementation of every op, at the sizes and on the tensors of a model's own plans.

Nodes that do the same work share a form. A form's nodes (the layers of a model: same sizes, their own weights) run one
after the other until they have touched COLD_BYTES, so that weights come from memory as they do in the model. The
activations, which the previous node has just written, may still be in a cache and then exceed the memory's ceiling.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch

from flashjanus.engine.ops import get_op
from flashjanus.engine.plan import PlannedNode
from flashjanus.engine.runtime.executor import Executor
from flashjanus.measure.ceilings import Ceilings
from flashjanus.measure.timing import Case, Clock, Record, timed

from .stages import Stages

COLD_BYTES = 256 * 2**20
SHORTEST = 2e-4
"""Seconds. Runs that are quicker are timed several at a time, at most MOST_RUNS."""
MOST_RUNS = 16
RESTORED_BYTES = 2**20
"""States up to this size (tokens, steps, latents) are restored before every sample; keys and values are not."""


@dataclass
class Form:
    """Nodes of one executor that do the same work. `program` is the plan they belong to."""

    executor: Executor
    program: str
    nodes: list[PlannedNode] = field(default_factory=list)

    @property
    def op(self) -> str:
        return self.nodes[0].op

    @property
    def sizes(self) -> str:
        """The specs of the first arguments."""
        given = zip(get_op(self.op).schema.inputs, self.nodes[0].inputs, strict=True)
        return ", ".join([f"{arg.name} {ref.spec}" for arg, ref in given if ref is not None][:3])

    @property
    def dtype(self) -> torch.dtype:
        """The dtype whose GEMM ceiling applies: the narrowest dtype that is multiplied."""
        found = {ref.spec.dtype for ref in self.nodes[0].inputs if ref is not None}
        order = (torch.int8, torch.float8_e4m3fn, torch.bfloat16, torch.float16)
        return next((dtype for dtype in order if dtype in found), torch.float32)

    def calls(self, name: str) -> list[Callable[[], None]]:
        """One call per node, by the implementation `name`, on the executor's tensors."""
        implementation = get_op(self.op).implementations[name]
        found, touched = [], 0
        for node in self.nodes:
            found.append(self.executor.call(node, implementation))
            touched += node.nbytes
            if touched > COLD_BYTES:
                break
        return found

    def serving(self) -> list[str]:
        """The implementations that do not refuse, starting with the chosen one."""
        node, device = self.nodes[0], self.executor.plan.device
        specs = [None if ref is None else ref.spec for ref in node.inputs]
        chosen = node.implementation.name
        able = [n for n, it in get_op(self.op).implementations.items() if it.refuses(device, specs, node.attrs) is None]
        return [chosen, *(name for name in able if name != chosen)]

    def moving(self) -> list[torch.Tensor]:
        """Small states that a run changes."""
        arguments = get_op(self.op).schema.inputs
        refs = [ref for n in self.nodes for arg, ref in zip(arguments, n.inputs, strict=True) if ref and arg.mutated]
        return [t for t in map(self.executor.tensor, refs) if t.nbytes <= RESTORED_BYTES]


def executors(stages: Stages, case: Case, repeats: int) -> Iterator[Executor]:
    """The programs at the sizes of `case` (those of "mix"), each in the state that a run left."""
    runner, size = stages.runner, stages.model.config.latent_size
    rows = case["rows"]
    with stages.drawing(case) as drawing:
        drawing.step()
        yield drawing.flow
    with stages.preparing(case) as prepared:
        prepared.run([stages.images(case)[0].timed_prompt])
        yield prepared.executor
    with stages.conversing(case, repeats) as chat:
        chat.start(stages.conversations(case), None)
        chat.step()
        yield chat.prefill
        yield chat.decode
    encoder = runner.executor("encode_images", I=rows)
    encoder.host["pixels"].copy_(stages.pixels(rows))
    encoder.upload()
    encoder.run()
    yield encoder
    if runner.vae_config is not None:
        decoder = runner.executor("decode_latents", B=1, H=size, W=size)
        decoder.inputs["z"].copy_(stages.noise(1))
        decoder.run()
        yield decoder


def forms(executor: Executor) -> list[Form]:
    """The plan's nodes grouped by form, ordered by the first node of each."""
    found: dict[Any, Form] = {}
    for node in executor.plan.nodes:
        found.setdefault(key(node), Form(executor, executor.plan.name)).nodes.append(node)
    return list(found.values())


def key(node: PlannedNode) -> tuple[Any, ...]:
    refs = tuple(None if ref is None else (str(ref.spec), ref.strides) for ref in (*node.inputs, *node.outputs))
    return node.op, refs, tuple(sorted((name, str(value)) for name, value in node.attrs.items()))


def measure_ops(
    stages: Stages,
    case: Case,
    *,
    repeats: int,
    ceilings: Ceilings,
    wanted: Sequence[str] = (),
    clock: Clock = time.perf_counter,
    done: Callable[[str], None] = lambda what: None,
) -> list[Record]:
    """A record for every implementation of every form, timed in turns of one sample. wanted: ops, () for all."""
    records: list[Record] = []
    seen: set[Any] = set()
    for executor in executors(stages, case, repeats):
        for form in forms(executor):
            if key(form.nodes[0]) in seen or (wanted and form.op not in wanted):
                continue
            seen.add(key(form.nodes[0]))
            records += time_form(form, repeats, clock, ceilings, stages.synchronize)
            done(f"{form.program}: {form.op}")
    return records


def time_form(form: Form, repeats: int, clock: Clock, ceilings: Ceilings, wait: Callable[[], None]) -> list[Record]:
    """One record per implementation that serves the form."""
    node, moving = form.nodes[0], form.moving()
    kept = [t.clone() for t in moving]
    case = Case(form.op, (("program", form.program), ("node", node.label), ("of", form.sizes)))
    runs: dict[str, tuple[list[Callable[[], None]], int]] = {}

    def sample(calls: Sequence[Callable[[], None]], loops: int) -> float:
        for tensor, value in zip(moving, kept, strict=True):
            tensor.copy_(value)

        def run() -> None:
            for _ in range(loops):
                for call in calls:
                    call()

        return timed(run, clock, wait) / (loops * len(calls))

    for name in form.serving():
        calls = form.calls(name)
        sample(calls, 1)
        once = max(sample(calls, 1) * len(calls), 1e-9)
        runs[name] = calls, max(1, min(MOST_RUNS, round(SHORTEST / once)))
    records = {name: Record(case, name) for name in runs}
    for turn in range(repeats):
        for name in list(runs)[:: 1 if turn % 2 == 0 else -1]:
            records[name].rounds.append([sample(*runs[name])])
    for tensor, value in zip(moving, kept, strict=True):
        tensor.copy_(value)
    for name, record in records.items():
        record.facts = rates(form, record.spread.median, ceilings) | {"chosen": name == node.implementation.name}
    return list(records.values())


def rates(form: Form, seconds: float, ceilings: Ceilings) -> dict[str, Any]:
    """The rates one node reaches: bytes/s, FLOP/s, and the share of the roofline, with the ceiling that bounds it."""
    node = form.nodes[0]
    shares = {
        "memory": node.nbytes / seconds / ceilings.bandwidth,
        "compute": node.flops / seconds / ceilings.rates[form.dtype],
    }
    bound = max(shares, key=lambda name: shares[name])
    return {
        "nodes": len(form.nodes),
        "bytes_per_s": node.nbytes / seconds,
        "flops_per_s": node.flops / seconds,
        "share": shares[bound],
        "bound": bound,
    }
