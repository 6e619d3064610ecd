"""The headline figures: the GPU's time by CUDA events, and a caller's waiting time by the host's clock. Captured rows
come first, the most important ones at the top; then the same work is launched kernel by kernel."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

from flashjanus.engine.plan import Plan
from flashjanus.engine.runtime.executor import Executor
from flashjanus.execution import flow, text, warming
from flashjanus.execution.runner import Runner
from flashjanus.scheduling import calls
from flashjanus.scheduling.policy import Limits
from flashjanus.scheduling.requests import TextJob
from flashjanus.scheduling.scheduler import Scheduler
from flashjanus.scheduling.shared import SharedScheduler

from .book import Found
from .budget import Notes
from .clock import summary, wall
from .workload import SAMPLING, Workload

IMAGES = 3
"""How often a whole image is drawn, or an answer written."""
Measured = tuple[Found, Sequence[Plan]]


@dataclass(frozen=True)
class Row:
    """A row, named by stage, rows and, unless it is bf16, its quantization; `run` measures it on a runner."""

    stage: str
    rows: int
    run: Callable[[Workload, Runner, int], Measured]
    quantization: str | None = None


def rows(work: Workload) -> Iterator[Row]:
    one, *more = work.sizes.images
    yield Row("flow step", one, flow_step)
    yield Row("image", one, image)
    yield from (Row(f"decode, {how}", 1, partial(decode, how)) for how in SAMPLING)
    yield Row("VAE", 1, vae)
    yield Row("SigLIP", 1, siglip)
    yield Row("prefill", 1, prefill)
    for count in more:
        yield Row("image", count, image)
        yield Row("flow step", count, flow_step)
    for of in work.setting.quantizations:
        if of == "fp8":
            yield Row("flow step", one, flow_step, of)
            yield Row("image", one, image, of)
        yield Row("decode, sampled", 1, partial(decode, "sampled"), of)
    for count in work.sizes.conversations[1:]:
        yield from (Row(f"decode, {how}", count, partial(decode, how)) for how in SAMPLING)
    yield Row("warm-up", 1, warm_up)
    yield Row("recalled step", one, recalled_step)
    yield Row("prepare", 1, prepare)
    yield Row("answer", 1, answer)


def run(work: Workload, notes: Notes) -> None:
    """Fill `notes.rows`; names are "stage rows quantization mode"."""
    for mode in ("graphs", "eager"):
        for row in rows(work):
            about = {"stage": row.stage, "rows": row.rows, "mode": mode, "quantization": row.quantization}
            name = " ".join(filter(None, (row.stage, str(row.rows), row.quantization, mode)))
            notes.measure(name, partial(measured, work, row, mode == "graphs"), about)


def measured(work: Workload, row: Row, graphs: bool) -> Found:
    """peak_bytes: the most memory in use meanwhile, including the weights and what earlier rows keep. without: what the
    row's plans would have chosen but for its faults."""
    runner = work.runner(graphs, row.quantization)
    work.clock.peak_bytes()
    found, plans = row.run(work, runner, row.rows)
    found["peak_bytes"] = work.clock.peak_bytes()
    left_out = work.faults.left_out(plans)
    return found | ({"without": left_out} if left_out else {})


def flow_step(work: Workload, runner: Runner, rows: int) -> Measured:
    """make_s: the time for plan, memory and, with graphs, capture, for which a first request waits."""
    prepared = work.prepared(runner)
    start = time.perf_counter()
    with runner.lease(flow.FlowSession, *work.flow_bucket(runner, rows), False, False) as session:
        work.clock.synchronize()
        make = time.perf_counter() - start
        work.join(session, prepared)
        work.clock.spans(session.step, 3)
        work.join(session, prepared)
        found = {"time": summary(work.clock.spans(session.step, work.sizes.steps)), "make_s": make}
        return found, [session.flow.plan]


def recalled_step(work: Workload, runner: Runner, rows: int) -> Measured:
    """A step that leaves the language model out."""
    prepared = work.prepared(runner)
    with runner.lease(flow.FlowSession, *work.flow_bucket(runner, rows), False, True) as session:
        work.join(session, prepared)
        recall = session.forms[False, session.guided]
        work.clock.spans(recall.run, 3)
        return {"time": summary(work.clock.spans(recall.run, work.sizes.steps))}, [recall.plan]


UNKEPT = Limits(prefix_bytes=0)
"""Every request prepares its prompt, as if nobody had prepared it before."""


def image(work: Workload, runner: Runner, rows: int) -> Measured:
    """Prompts are prepared, all steps run, and latents are read."""
    requests = work.flow_requests(rows)
    shared = SharedScheduler(partial(Scheduler, runner, UNKEPT))
    waited = wall(work.clock, lambda: calls.draw(shared, requests).result.cpu(), IMAGES)
    with runner.lease(flow.FlowSession, *work.flow_bucket(runner, rows), False, False) as session:
        return {"time": waited, "images_per_s": rows / waited["median_s"]}, [session.flow.plan]


def prepare(work: Workload, runner: Runner, rows: int) -> Measured:
    """One prompt, prepared once per image: its keys and values, and those of the time tokens."""
    made = work.prepared(runner).executor
    return {"time": summary(work.clock.spans(made.run, work.sizes.repeats))}, [made.plan]


def prefill(work: Workload, runner: Runner, rows: int) -> Measured:
    """The wall time includes writing and sending ids and settings."""
    requests = work.chat_requests(rows, SAMPLING["sampled"])
    start = time.perf_counter()
    with runner.lease(text.TextSession, *work.chat_bucket(runner, rows)) as session:
        work.clock.synchronize()
        make = time.perf_counter() - start
        waited = wall(work.clock, lambda: session.start(requests, None), work.sizes.repeats)
        spans = work.clock.spans(session.prefill.run, work.sizes.repeats)
        return {"time": summary(spans), "wall": waited, "make_s": make}, [session.prefill.plan]


def decode(how: str, work: Workload, runner: Runner, rows: int) -> Measured:
    """One token of every row after a prompt."""
    with runner.lease(text.TextSession, *work.chat_bucket(runner, rows)) as session:
        session.start(work.chat_requests(rows, SAMPLING[how]), None)
        warm = work.sizes.new // 4
        work.clock.spans(session.step, warm)
        spans = work.clock.spans(session.step, work.sizes.new - warm)
        return {"time": summary(spans)}, [session.decode.plan]


def answer(work: Workload, runner: Runner, rows: int) -> Measured:
    """All new tokens of all rows, prefill included, each read by the host when it is ready. The time is that of one
    token of every row."""
    requests, new = work.chat_requests(rows, SAMPLING["sampled"]), work.sizes.new
    jobs = [TextJob(request=request, room=new) for request in requests]
    shared = SharedScheduler(partial(Scheduler, runner, UNKEPT))

    def run() -> None:
        for _ in calls.write(shared, jobs):
            pass

    waited = wall(work.clock, run, IMAGES)
    each = {name: value / new if name.endswith("_s") else value for name, value in waited.items()}
    with runner.lease(text.TextSession, *work.chat_bucket(runner, rows)) as session:
        plans = [session.prefill.plan, session.decode.plan]
    return {"time": each, "tokens_per_s": rows * new / waited["median_s"]}, plans


def vae(work: Workload, runner: Runner, rows: int) -> Measured:
    return _whole(work, lambda: work.decoder(runner))


def siglip(work: Workload, runner: Runner, rows: int) -> Measured:
    return _whole(work, lambda: work.encoder(runner))


def _whole(work: Workload, make: Callable[[], Executor]) -> Measured:
    """One image through the VAE's decoder or the understanding encoder."""
    start = time.perf_counter()
    executor = make()
    work.clock.synchronize()
    seconds = time.perf_counter() - start
    work.clock.spans(executor.run, 3)
    found = {"time": summary(work.clock.spans(executor.run, work.sizes.repeats)), "make_s": seconds}
    return found, [executor.plan]


def warm_up(work: Workload, runner: Runner, rows: int) -> Measured:
    """Memory and graphs for one image and one conversation of a model that has none yet; bytes: what they take."""
    fresh = work.new_runner(runner.gpu is not None and runner.gpu.graphs)
    before, start = work.clock.held_bytes(), time.perf_counter()
    lengths = work.sizes.prompt, work.sizes.chat
    warming.warm_up(fresh, (rows,), (rows,), lengths, work.sizes.steps, work.sizes.new, "exact")
    work.clock.synchronize()
    seconds = time.perf_counter() - start
    return {"time": summary([seconds]), "bytes": work.clock.held_bytes() - before}, []
