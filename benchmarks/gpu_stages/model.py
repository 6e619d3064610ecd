"""The model's stages at full size: by CUDA events what the GPU takes, by the host's clock what a caller waits for."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

from flashjanus.pipeline import flow, text
from flashjanus.pipeline.runner import Runner

from .budget import Found, Notes
from .clock import summary, wall
from .workload import Workload

IMAGES = 3
"""Times that a whole image is drawn, or an answer given."""


def run(work: Workload, notes: Notes) -> None:
    """Fill `notes.rows`; names are "stage rows mode"."""
    sizes = work.sizes
    for mode, runner in (("graphs", work.graphs), ("eager", work.eager)):

        def stage(name: str, run: Callable[[], Found], rows: int = 1, mode: str = mode) -> None:
            about = {"stage": name, "rows": rows, "mode": mode}
            notes.measure(f"{name} {rows} {mode}", partial(with_peak, work, run), about)

        for rows in sizes.images:
            stage("flow step", partial(flow_step, work, runner, rows), rows)
            stage("recalled step", partial(recalled_step, work, runner, rows), rows)
            stage("image", partial(image, work, runner, rows), rows)
        stage("prepare", partial(prepare, work, runner))
        stage("prefill", partial(prefill, work, runner))
        for rows in sizes.conversations:
            stage("decode", partial(decode, work, runner, rows), rows)
            stage("answer", partial(answer, work, runner, rows), rows)
        stage("VAE", partial(whole, work, lambda runner=runner: work.decoder(runner)))
        stage("SigLIP", partial(whole, work, lambda runner=runner: work.encoder(runner)))
    notes.save()


def with_peak(work: Workload, run: Callable[[], Found]) -> Found:
    """peak_bytes: the most memory in use meanwhile, the weights and what earlier stages keep included."""
    work.clock.peak_bytes()
    return {**run(), "peak_bytes": work.clock.peak_bytes()}


def flow_step(work: Workload, runner: Runner, rows: int) -> Found:
    """make_s: plan, memory and, with graphs, capture, what a first request waits for."""
    prepared = work.prepared(runner)
    start = time.perf_counter()
    with runner.lease(flow.FlowSession, *work.flow_bucket(runner, rows), False, False) as session:
        work.clock.synchronize()
        make = time.perf_counter() - start
        work.join(session, prepared)
        work.clock.spans(session.step, 3)
        work.join(session, prepared)
        return {"time": summary(work.clock.spans(session.step, work.sizes.steps)), "make_s": make}


def recalled_step(work: Workload, runner: Runner, rows: int) -> Found:
    """One that leaves the language model out."""
    prepared = work.prepared(runner)
    with runner.lease(flow.FlowSession, *work.flow_bucket(runner, rows), False, True) as session:
        work.join(session, prepared)
        recall = session.forms[False, True].run
        work.clock.spans(recall, 3)
        return {"time": summary(work.clock.spans(recall, work.sizes.steps))}


def image(work: Workload, runner: Runner, rows: int) -> Found:
    """Prompts prepared, all steps, latents read."""
    requests = work.flow_requests(rows)
    time = wall(work.clock, lambda: flow.generate(runner, requests).cpu(), IMAGES)
    return {"time": time, "images_per_s": rows / time["median_s"]}


def prepare(work: Workload, runner: Runner) -> Found:
    """One prompt, once an image: its keys and values, and the time tokens'."""
    prepared = work.prepared(runner)
    return {"time": summary(work.clock.spans(prepared.executor.run, work.sizes.repeats))}


def prefill(work: Workload, runner: Runner) -> Found:
    """wall: with ids and settings written and sent."""
    requests = work.chat_requests(1, work.sizes.chat)
    start = time.perf_counter()
    with runner.lease(text.TextSession, *work.chat_bucket(runner, 1, work.sizes.chat)) as session:
        work.clock.synchronize()
        make = time.perf_counter() - start
        waited = wall(work.clock, lambda: session.start(requests, None), work.sizes.repeats)
        spans = work.clock.spans(session.prefill.run, work.sizes.repeats)
        return {"time": summary(spans), "wall": waited, "make_s": make}


def decode(work: Workload, runner: Runner, rows: int) -> Found:
    """One token of every row, drawn, behind a prompt."""
    with runner.lease(text.TextSession, *work.chat_bucket(runner, rows, work.sizes.chat)) as session:
        session.start(work.chat_requests(rows, work.sizes.chat), None)
        warm = work.sizes.new // 4
        work.clock.spans(session.step, warm)
        spans = work.clock.spans(session.step, work.sizes.new - warm)
        return {"time": summary(spans)}


def answer(work: Workload, runner: Runner, rows: int) -> Found:
    """All new tokens of all rows, prefill included, each read by the host as it comes; time: a token of every row."""
    requests, new = work.chat_requests(rows, work.sizes.chat), work.sizes.new

    def run() -> None:
        for _ in text.generate(runner, requests, None, [new] * rows, None):
            pass

    waited = wall(work.clock, run, IMAGES)
    each = {name: value / new if name.endswith("_s") else value for name, value in waited.items()}
    return {"time": each, "tokens_per_s": rows * new / waited["median_s"]}


def whole(work: Workload, make: Callable[[], object]) -> Found:
    """One image through the VAE's decoder or the understanding encoder."""
    start = time.perf_counter()
    executor = make()
    work.clock.synchronize()
    seconds = time.perf_counter() - start
    work.clock.spans(executor.run, 3)
    return {"time": summary(work.clock.spans(executor.run, work.sizes.repeats)), "make_s": seconds}
