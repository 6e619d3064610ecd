"""One model that many threads call at once, and callers that leave."""

from __future__ import annotations

import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.errors import DeviceError, InputError
from flashjanus.execution.flow import FlowSession
from flashjanus.execution.text_rows import DecodeSession
from flashjanus.scheduling.requests import Finished, ImageJob, TextJob
from flashjanus.scheduling.scheduler import Scheduler
from flashjanus.scheduling.shared import SharedScheduler
from small_jobs import SAMPLERS, TOKENS, alone, image, small, text

PATIENCE = 60.0
"""Seconds; only what hangs takes them."""


def at_once(calls: list[Callable[[], Any]]) -> list[Any]:
    """What each gives, or raises, in a thread of its own; all begin together."""
    found: list[Any] = [None] * len(calls)
    start = threading.Barrier(len(calls))

    def run(n: int) -> None:
        start.wait()
        try:
            found[n] = calls[n]()
        except Exception as error:
            found[n] = error

    threads = [threading.Thread(target=run, args=(n,), daemon=True) for n in range(len(calls))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE)
    assert not any(thread.is_alive() for thread in threads), "a call hangs"
    return found


def in_time(call: Callable[[], Any]) -> Any:
    (found,) = at_once([call])
    if isinstance(found, BaseException):
        raise found
    return found


def normal(seed: int) -> torch.Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed))


def latents(model: JanusFlow, seed: int, **options: Any) -> Any:
    ids = [[*range(1, 5 + seed), 76]]
    return model.sample_latents(ids, normal(seed), num_inference_steps=4, **options)


def ids_of(model: JanusFlow, seed: int, new: int = 6) -> torch.Tensor:
    return model.generate_ids(torch.tensor([[0, *range(5 + seed, 12)]]), max_new_tokens=new, do_sample=True, seed=seed)


def question(text: str) -> list[dict[str, Any]]:
    return [{"role": "user", "content": text}]


def draws(model: JanusFlow, seed: int, **options: Any) -> torch.Tensor:
    options = dict(num_inference_steps=2, output_type="latent") | options
    return model.generate_image("a red circle", seed=seed, **options).images


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    return small()


@pytest.fixture(autouse=True)
def nothing_stays(request: pytest.FixtureRequest) -> Any:
    yield
    for name in ("model", "untrained"):
        if name in request.fixturenames:
            used = request.getfixturevalue(name)
            scheduler = used.shared.scheduler
            while scheduler.busy:
                scheduler.step()
            assert scheduler.live == (0, 0)
            assert scheduler.queued == 0
            assert used.runner.leased == 0


def test_eight_threads_get_what_each_gets_alone_and_are_served_together(
    untrained: JanusFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[Callable[[], Any]] = []
    for n in range(8):
        if n % 2:
            calls.append(lambda n=n: untrained.chat(question(f"What is it, {n}?"), max_new_tokens=6))
        else:
            calls.append(lambda n=n: draws(untrained, n, num_inference_steps=6))
    due = [call() for call in calls]
    steps, step = [0], FlowSession.step
    monkeypatch.setattr(FlowSession, "step", lambda self: (steps.__setitem__(0, steps[0] + 1), step(self))[1])
    for got, expected in zip(at_once(calls), due, strict=True):
        if isinstance(expected, str):
            assert got == expected
        else:
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert steps[0] < 4 * 6, "rows of several threads run in one evaluation"


def test_eight_threads_of_ids(model: JanusFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    calls = [(lambda n=n: ids_of(model, n, 20)) if n % 2 else (lambda n=n: latents(model, n)) for n in range(8)]
    due = [call() for call in calls]
    steps, step = [0], DecodeSession.step
    monkeypatch.setattr(DecodeSession, "step", lambda self: (steps.__setitem__(0, steps[0] + 1), step(self))[1])
    for _ in range(4):
        for got, expected in zip(at_once(calls), due, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)
    assert steps[0] < 4 * 4 * 19


def test_a_callback_runs_in_its_callers_thread(untrained: JanusFlow) -> None:
    seen: dict[int, set[int]] = {}

    def call(n: int) -> tuple[int, torch.Tensor]:
        seen[n] = set()

        def watch(model: Any, k: int, t: float, given: dict[str, Any]) -> dict[str, Any]:
            seen[n].add(threading.get_ident())
            return given

        return threading.get_ident(), draws(untrained, n, num_inference_steps=3, callback_on_step_end=watch)

    found = at_once([lambda n=n: call(n) for n in range(4)])
    for n, (thread, images) in enumerate(found):
        assert seen[n] == {thread}
        torch.testing.assert_close(images, draws(untrained, n, num_inference_steps=3), rtol=0, atol=1e-5)


def test_a_callback_that_raises_ends_its_own_call_only(untrained: JanusFlow) -> None:
    def fails(model: Any, k: int, t: float, given: dict[str, Any]) -> dict[str, Any]:
        raise RuntimeError("enough")

    calls: list[Callable[[], Any]] = [lambda: draws(untrained, 0, callback_on_step_end=fails)] * 2
    calls += [lambda n=n: draws(untrained, n) for n in range(3)]
    due = [call() for call in calls[2:]]
    for _ in range(3):
        first, second, *others = at_once(calls)
        assert str(first) == str(second) == "enough"
        for got, expected in zip(others, due, strict=True):
            torch.testing.assert_close(got, expected, rtol=0, atol=1e-5)


def test_a_callback_may_call_the_model(untrained: JanusFlow) -> None:
    due = draws(untrained, 5), untrained.chat(question("What is it?"), max_new_tokens=3)
    inner = []

    def calls(model: Any, k: int, t: float, given: dict[str, Any]) -> dict[str, Any]:
        answer = model.chat(question("What is it?"), max_new_tokens=3)
        inner.append((draws(model, 5, callback_on_step_end=lambda *step: step[3]), answer))
        return given

    outer = in_time(lambda: draws(untrained, 6, callback_on_step_end=calls))
    assert torch.equal(outer, draws(untrained, 6))
    for images, answer in inner:
        assert torch.equal(images, due[0])
        assert answer == due[1]


def test_a_slow_callback_holds_nobody_up(untrained: JanusFlow) -> None:
    inside, done = threading.Event(), threading.Event()

    def waits(model: Any, k: int, t: float, given: dict[str, Any]) -> dict[str, Any]:
        inside.set()
        assert done.wait(PATIENCE)
        return given

    def others() -> torch.Tensor:
        assert inside.wait(PATIENCE)
        try:
            return draws(untrained, 1)
        finally:
            done.set()

    _, got = at_once([lambda: draws(untrained, 0, callback_on_step_end=waits), others])
    torch.testing.assert_close(got, draws(untrained, 1), rtol=0, atol=1e-5)


@pytest.mark.parametrize("end", ["dropped", "closed", "collected"])
def test_a_stream_that_is_abandoned_frees_its_row(untrained: JanusFlow, end: str) -> None:
    stream: Any = untrained.chat(question("What is it?"), max_new_tokens=50, stream=True)
    next(stream)
    scheduler = untrained.shared.scheduler
    assert scheduler.live == (0, 1)
    if end == "closed":
        stream.close()
    if end == "collected":
        circle: list[Any] = [stream]
        circle.append(circle)
        del circle
    del stream
    gc.collect()
    assert scheduler.live == (0, 0)
    assert untrained.runner.leased == 0


def test_a_stream_that_nobody_reads_blocks_nobody(untrained: JanusFlow) -> None:
    whole = untrained.chat(question("What is it?"), max_new_tokens=30)
    stream: Any = untrained.chat(question("What is it?"), max_new_tokens=30, stream=True)
    pieces = [next(stream)]
    due = draws(untrained, 3)
    for images in at_once([lambda: draws(untrained, 3)] * 3):
        torch.testing.assert_close(images, due, rtol=0, atol=1e-5)
    assert "".join([*pieces, *stream]) == whole


def leave_to_the_collector(model: JanusFlow) -> None:
    """A stream in the midst of its answer, which only the garbage collector can reach."""
    stream: Any = model.chat(question("What is it?"), max_new_tokens=50, stream=True)
    next(stream)
    circle: list[Any] = [stream]
    circle.append(circle)


def test_a_stream_that_is_collected_in_the_midst_of_a_step_stops_nobody(
    untrained: JanusFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The garbage collector runs in whatever thread allocates: also in the one that drives."""
    leave_to_the_collector(untrained)
    step = FlowSession.step

    def collecting(self: FlowSession) -> None:
        gc.collect()
        step(self)

    monkeypatch.setattr(FlowSession, "step", collecting)
    in_time(lambda: draws(untrained, 3))
    assert untrained.shared.scheduler.live == (0, 0)


def test_a_stream_that_is_collected_while_a_job_is_submitted_stops_nobody(
    untrained: JanusFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    leave_to_the_collector(untrained)
    submit = Scheduler.submit

    def collecting(self: Scheduler, *args: Any, **options: Any) -> Any:
        gc.collect()
        return submit(self, *args, **options)

    monkeypatch.setattr(Scheduler, "submit", collecting)
    in_time(lambda: draws(untrained, 3))
    assert untrained.shared.scheduler.live == (0, 0)


def test_a_call_that_is_refused_wakes_those_who_let_it_pass(model: JanusFlow, monkeypatch: pytest.MonkeyPatch) -> None:
    due = latents(model, 1)
    step, submit = Scheduler.step, Scheduler.submit
    inside, refusing = threading.Event(), threading.Event()

    def slow(self: Scheduler) -> Any:
        inside.set()
        refusing.wait(0.2)
        time.sleep(0.02)  # the one that is refused waits for its turn by now
        return step(self)

    def refuses(self: Scheduler, job: Any, **options: Any) -> Any:
        if isinstance(job, TextJob):
            raise InputError("no")
        return submit(self, job, **options)

    monkeypatch.setattr(Scheduler, "step", slow)
    monkeypatch.setattr(Scheduler, "submit", refuses)

    def refused() -> Any:
        assert inside.wait(PATIENCE)
        refusing.set()
        return ids_of(model, 2)

    first, second = at_once([lambda: latents(model, 1), refused])
    torch.testing.assert_close(first, due, rtol=0, atol=0)
    assert isinstance(second, InputError)


def test_an_error_in_a_step_reaches_the_calls_that_were_in_it(
    model: JanusFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whoever drives."""
    due = ids_of(model, 2, 40)
    monkeypatch.setattr(FlowSession, "step", lambda self: (_ for _ in ()).throw(ValueError("broken")))
    for _ in range(3):
        *drawn, written = at_once([*[lambda n=n: latents(model, n) for n in range(3)], lambda: ids_of(model, 2, 40)])
        assert torch.equal(written, due)
        for error in drawn:
            assert isinstance(error, DeviceError)
            assert isinstance(error.__cause__, ValueError)


def test_a_scheduler_is_made_once_for_threads_that_call_first(model: JanusFlow) -> None:
    made = []

    def make() -> Scheduler:
        time.sleep(0.05)
        made.append(Scheduler(model.runner))
        return made[-1]

    shared = SharedScheduler(make)
    at_once([lambda: shared.scheduler] * 4)
    assert len(made) == 1


def test_calls_and_abandoned_calls_of_many_threads_all_end(model: JanusFlow) -> None:
    jobs = [ImageJob(rows=(image(SAMPLERS[n % 3], n, 4 + n),), decode=False, pauses=n % 2 == 1) for n in range(4)] + [
        TextJob(request=text(n, 4, 0, False), room=5, image_tokens=TOKENS) for n in range(4)
    ]
    due = [alone(model, job) for job in [*(ImageJob(rows=j.rows, decode=False) for j in jobs[:4]), *jobs[4:]]]

    def run(n: int) -> None:
        for turn in range(12):
            which = (n + turn) % len(jobs)
            job, events = jobs[which], model.shared.serve([jobs[which]])
            for seen, event in enumerate(events):
                if (n + turn) % 3 == 0 and seen == turn % 5:
                    break
                if isinstance(event, Finished):
                    torch.testing.assert_close(
                        torch.as_tensor(event.result), torch.as_tensor(due[which]), rtol=0, atol=1e-5
                    )
                elif isinstance(job, ImageJob) and job.pauses and type(event).__name__ == "Progress":
                    model.shared.resume(event.handle, model.shared.latents(event.handle))

    assert at_once([lambda n=n: run(n) for n in range(8)]) == [None] * 8


def test_of_jobs_that_are_refused_together_none_stays(model: JanusFlow) -> None:
    good = TextJob(request=text(1, 4, 0, False), room=5, image_tokens=TOKENS)
    with pytest.raises(InputError, match=r"job\.room"):
        next(model.shared.serve([good, TextJob(request=good.request, room=-1)]))
    assert model.shared.scheduler.queued == 0
    assert not model.shared._events


FORKS = """
import os, signal, sys, threading
sys.path.insert(0, sys.argv[1])
import torch
from flashjanus.execution.flow import FlowSession
from small_jobs import SAMPLERS, image, small

model = small()
ids, noise = [[1, 2, 3, 76]], torch.ones(1, 4, 8, 8)
due = model.sample_latents(ids, noise, num_inference_steps=2)
inside, forked, step = threading.Event(), threading.Event(), FlowSession.step

def stops(self):
    inside.set()
    assert forked.wait(60)
    step(self)

FlowSession.step = stops
thread = threading.Thread(target=lambda: model.sample_latents(ids, noise * 2, num_inference_steps=2))
thread.start()
assert inside.wait(60)
child = os.fork()
FlowSession.step = step
if child == 0:
    signal.alarm(60)
    same = torch.equal(model.sample_latents(ids, noise, num_inference_steps=2), due)
    os._exit(0 if same and model.shared.scheduler.live == (0, 0) else 1)
assert os.waitpid(child, 0)[1] == 0, "the child"
forked.set()
assert torch.equal(model.sample_latents(ids, noise, num_inference_steps=2), due)
thread.join()
print("both")
"""


@pytest.mark.skipif(not hasattr(os, "fork"), reason="no fork here")
def test_a_child_that_is_forked_while_another_thread_drives_serves_its_own_calls() -> None:
    command = [sys.executable, "-c", FORKS, str(Path(__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert done.stdout == "both\n", done.stderr
