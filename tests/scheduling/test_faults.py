"""What fails ends the jobs that were in it; all others go on, give what they give alone, and nothing stays taken."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from itertools import count
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.errors import DeviceError, InputError, NonFiniteError, OutOfMemoryError
from flashjanus.execution import pictures
from flashjanus.execution.flow import FlowSession, Prepared
from flashjanus.execution.runner import Runner
from flashjanus.execution.text import TextSession
from flashjanus.execution.text_rows import DecodeSession
from flashjanus.scheduling import drawing
from flashjanus.scheduling.requests import Event, Failed, Finished, Handle, ImageJob, Job, Progress, TextJob
from flashjanus.scheduling.scheduler import Scheduler
from small_jobs import SAMPLERS, TOKENS, alone, image, small, text

GUIDED = [ImageJob(rows=(image(SAMPLERS[2], seed, 5 + seed),), decode=False) for seed in range(3)]
WRITTEN = [
    TextJob(request=text(seed, 4 + seed, seed % 2, seed == 2), room=14, image_tokens=TOKENS) for seed in range(3)
]
JOBS: dict[str, list[Any]] = {"images": GUIDED, "answers": WRITTEN}
SESSIONS = {"images": FlowSession, "answers": DecodeSession}


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    return small()


@pytest.fixture(scope="module")
def expected(model: JanusFlow) -> dict[Job, Any]:
    return {job: alone(model, job) for job in (*GUIDED, *WRITTEN)}


@pytest.fixture(autouse=True)
def nothing_stays(model: JanusFlow) -> Any:
    yield
    assert model.runner.leased == 0


class Scarce:
    """Memory that a model is refused where `refused(make, bucket)`."""

    def __init__(self, runner: Runner, patch: pytest.MonkeyPatch, refused: Callable[..., bool]) -> None:
        self.taken, self.refusals = runner.take, 0

        def take(make: Callable[..., Any], *bucket: Any) -> Any:
            if refused(make, bucket):
                self.refusals += 1
                raise OutOfMemoryError("expected memory, got none")
            return self.taken(make, *bucket)

        patch.setattr(runner, "take", take)


def drain(scheduler: Scheduler, steps: int = 500) -> dict[Handle, list[Event]]:
    """All events by job. What a step raises is passed over, as by a caller who goes on."""
    told: dict[Handle, list[Event]] = {}
    for _ in range(steps):
        if not scheduler.busy:
            return told
        try:
            events = scheduler.step()
        except (ValueError, KeyboardInterrupt):
            continue
        for event in events:
            told.setdefault(event.handle, []).append(event)
    raise AssertionError(f"still busy after {steps} steps: {scheduler.live} live, {scheduler.queued} queued")


def even(model: JanusFlow) -> Scheduler:
    """By whose clock every turn takes as long: who goes next does not depend on how fast the machine is."""
    return Scheduler(model.runner, clock=partial(next, count(0.0)))


def rows_of(scheduler: Scheduler, kind: str) -> Any:
    return scheduler._images._together if kind == "images" else scheduler._answers._rows


def until(scheduler: Scheduler, there: Callable[[], bool], told: dict[Handle, list[Event]] | None = None) -> None:
    for _ in range(200):
        if there():
            return
        for event in scheduler.step():
            if told is not None:
                told.setdefault(event.handle, []).append(event)
    raise AssertionError("it does not come")


def check(found: Any, due: Any) -> None:
    if isinstance(due, torch.Tensor):
        torch.testing.assert_close(found, due, rtol=0, atol=1e-5)
    else:
        assert found == due


def assert_results(told: dict[Handle, list[Event]], expected: dict[Job, Any], failed: Any = ()) -> None:
    for handle, events in told.items():
        if handle in failed:
            assert isinstance(events[-1], Failed)
            continue
        assert isinstance(events[-1], Finished), events[-1]
        check(events[-1].result, expected[handle.job])


@pytest.mark.parametrize(
    ("kind", "jobs"), [(Prepared, GUIDED), (TextSession, WRITTEN), (DecodeSession, WRITTEN), (FlowSession, GUIDED)]
)
def test_jobs_without_memory_fail_and_do_not_wait_for_each_other_for_ever(
    model: JanusFlow, monkeypatch: pytest.MonkeyPatch, kind: Any, jobs: list[Job]
) -> None:
    Scarce(model.runner, monkeypatch, lambda make, bucket: make is kind)
    scheduler = even(model)
    handles = [scheduler.submit(job) for job in jobs]
    told = drain(scheduler)
    for handle in handles:
        assert isinstance(told[handle][-1], Failed)
        assert isinstance(told[handle][-1].error, OutOfMemoryError)


@pytest.mark.parametrize("kind", [Prepared, TextSession])
def test_a_job_without_memory_waits_until_another_ends(
    model: JanusFlow, expected: dict[Job, Any], monkeypatch: pytest.MonkeyPatch, kind: Any
) -> None:
    first, late = (GUIDED[0], WRITTEN[0])[:: 1 if kind is TextSession else -1]
    scheduler = even(model)
    before = scheduler.submit(first)
    scheduler.step(), scheduler.step(), scheduler.step()
    scarce = Scarce(model.runner, monkeypatch, lambda make, bucket: make is kind and not before.ended)
    handle = scheduler.submit(late)
    told = drain(scheduler)
    assert isinstance(told[handle][-1], Finished)
    check(told[handle][-1].result, expected[late])
    assert scarce.refusals == 1, "it is not tried again before another has ended"


@pytest.mark.parametrize("kind", ["images", "answers"])
def test_rows_that_no_memory_is_left_for_wait_and_the_others_go_on(
    model: JanusFlow, expected: dict[Job, Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    Scarce(model.runner, monkeypatch, lambda make, bucket: make is SESSIONS[kind] and bucket[0] > 1)
    scheduler = even(model)
    handles = [scheduler.submit(job) for job in JOBS[kind]]
    ended = []
    while scheduler.busy:
        for event in scheduler.step():
            if isinstance(event, Finished):
                check(event.result, expected[event.handle.job])
                ended.append(event.handle)
    assert ended == handles, "one after another, in the order in which they came"


@pytest.mark.parametrize("kind", ["images", "answers"])
def test_rows_stay_where_they_are_when_there_is_no_memory_to_shrink(
    model: JanusFlow, expected: dict[Job, Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    scheduler = even(model)
    handles = [scheduler.submit(job) for job in JOBS[kind]]
    rows = rows_of(scheduler, kind)
    until(scheduler, lambda: len(rows.rows) == 3 and all(row.place is not None for row in rows.rows))
    Scarce(model.runner, monkeypatch, lambda make, bucket: make is SESSIONS[kind])
    scheduler.cancel(handles[0])
    told = drain(scheduler)
    assert_results({h: events for h, events in told.items() if h is not handles[0]}, expected)


def boom(error: BaseException) -> Callable[..., Any]:
    def run(*args: Any, **options: Any) -> Any:
        raise error

    return run


ERRORS = [ValueError("broken"), KeyboardInterrupt()]
NO_MEMORY = [torch.OutOfMemoryError("planted"), MemoryError("planted")]


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("kind", ["images", "answers"])
def test_a_step_that_is_cut_short_ends_the_jobs_in_it(
    model: JanusFlow, expected: dict[Job, Any], monkeypatch: pytest.MonkeyPatch, kind: str, error: BaseException
) -> None:
    scheduler = even(model)
    handles = {k: [scheduler.submit(job) for job in JOBS[k]] for k in JOBS}
    with monkeypatch.context() as patch:
        patch.setattr(SESSIONS[kind], "step", boom(error))
        told: dict[Handle, list[Event]] = {}
        with pytest.raises(type(error)):
            until(scheduler, lambda: False, told)
        in_it = [h for h in handles[kind] if h.ended]
        assert in_it
    for handle, events in drain(scheduler).items():
        told.setdefault(handle, []).extend(events)
    assert_results(told, expected, in_it)
    failures = [told[handle][-1] for handle in in_it]
    assert all(isinstance(f, Failed) and isinstance(f.error, DeviceError) for f in failures)
    assert all(type(error).__name__ in str(f.error) for f in failures if isinstance(f, Failed))


@pytest.mark.parametrize("kind", ["images", "answers"])
def test_rows_that_waited_for_memory_outlive_a_step_that_is_cut_short(
    model: JanusFlow, expected: dict[Job, Any], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    scheduler = even(model)
    Scarce(model.runner, monkeypatch, lambda make, bucket: make is SESSIONS[kind] and bucket[0] > 1)
    first, *others = [scheduler.submit(job) for job in JOBS[kind]]
    told: dict[Handle, list[Event]] = {}
    rows = rows_of(scheduler, kind)
    until(scheduler, lambda: bool(rows._without_memory), told)
    with monkeypatch.context() as patch:
        patch.setattr(SESSIONS[kind], "step", boom(KeyboardInterrupt()))
        with pytest.raises(KeyboardInterrupt):
            until(scheduler, lambda: False)
    for handle, events in drain(scheduler).items():
        told.setdefault(handle, []).extend(events)
    assert_results(told, expected, [first])
    assert set(told) == {first, *others}


@pytest.mark.parametrize("error", NO_MEMORY)
@pytest.mark.parametrize("kind", ["images", "answers"])
def test_a_step_that_finds_no_memory_tells_its_jobs_so(
    model: JanusFlow, monkeypatch: pytest.MonkeyPatch, kind: str, error: BaseException
) -> None:
    scheduler = even(model)
    handle = scheduler.submit(JOBS[kind][0])
    told: dict[Handle, list[Event]] = {}
    with monkeypatch.context() as patch:
        patch.setattr(SESSIONS[kind], "step", boom(error))
        with pytest.raises(type(error)):
            until(scheduler, lambda: False, told)
    [failure] = drain(scheduler)[handle]
    assert isinstance(failure, Failed)
    assert isinstance(failure.error, OutOfMemoryError)


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize("kind", ["images", "answers"])
def test_a_move_that_is_cut_short_ends_the_jobs_in_it(
    model: JanusFlow, expected: dict[Job, Any], monkeypatch: pytest.MonkeyPatch, kind: str, error: BaseException
) -> None:
    scheduler = even(model)
    first = scheduler.submit(JOBS[kind][0])
    until(scheduler, lambda: rows_of(scheduler, kind).session is not None)
    second = scheduler.submit(JOBS[kind][1])
    with monkeypatch.context() as patch:
        patch.setattr(SESSIONS[kind], "take_over", boom(error))
        with pytest.raises(type(error)):
            until(scheduler, lambda: False)
    assert first.ended
    assert second.ended
    third = scheduler.submit(JOBS[kind][2])
    assert_results(drain(scheduler), expected, [first, second])
    assert third.ended


@pytest.mark.parametrize("error", ERRORS)
@pytest.mark.parametrize(("kind", "session"), [("images", Prepared), ("answers", TextSession)])
def test_a_piece_that_is_cut_short_ends_its_job(
    model: JanusFlow,
    expected: dict[Job, Any],
    monkeypatch: pytest.MonkeyPatch,
    kind: str,
    session: Any,
    error: BaseException,
) -> None:
    scheduler = even(model)
    handles = [scheduler.submit(job) for k in JOBS for job in JOBS[k]]
    failing = handles[0 if kind == "images" else 3]
    method = "run" if kind == "images" else "read"
    before = getattr(session, method)
    left = [error]

    def once(*args: Any) -> Any:
        if left:
            raise left.pop()
        return before(*args)

    monkeypatch.setattr(session, method, once)
    told = drain(scheduler)
    assert_results(told, expected, [failing])
    assert isinstance(told[failing][-1], Failed)
    assert type(error).__name__ in str(told[failing][-1].error)


def test_an_image_that_is_not_finite_fails_alone(model: JanusFlow, expected: dict[Job, Any]) -> None:
    bad = replace(GUIDED[1].rows[0], noise=torch.full_like(GUIDED[1].rows[0].noise, 3e38))
    scheduler = even(model)
    neighbors = [scheduler.submit(GUIDED[0])]
    handle = scheduler.submit(ImageJob(rows=(bad,), decode=False))
    neighbors.append(scheduler.submit(GUIDED[2]))
    told = drain(scheduler)
    assert isinstance(told[handle][-1], Failed)
    assert isinstance(told[handle][-1].error, NonFiniteError)
    scheduler = even(model)
    beside_good = [scheduler.submit(job) for job in GUIDED]
    due = drain(scheduler)
    for got, other in zip(neighbors, beside_good[::2], strict=True):
        assert torch.equal(told[got][-1].result, due[other][-1].result)
    # what took the place of a row that was not finite sees none of it
    scheduler = even(model)
    handles = [scheduler.submit(job) for job in GUIDED]
    assert_results(drain(scheduler), expected)
    assert handles


def test_image_tags_without_an_image_fail_alone(model: JanusFlow, expected: dict[Job, Any]) -> None:
    scheduler = even(model)
    good = scheduler.submit(WRITTEN[1])
    bad = scheduler.submit(replace(WRITTEN[1], request=replace(WRITTEN[1].request, pixels=None)))
    told = drain(scheduler)
    assert isinstance(told[bad][-1], Failed)
    assert isinstance(told[bad][-1].error, InputError)
    assert_results({good: told[good]}, expected)


def test_pictures_without_memory_wait_and_their_images_are_not_drawn_again(
    untrained: JanusFlow, monkeypatch: pytest.MonkeyPatch
) -> None:
    size = untrained.config.latent_size
    noise = torch.randn(4, size, size, generator=torch.Generator().manual_seed(1))
    row = replace(image(SAMPLERS[0], 1, 4), noise=noise)
    scheduler = untrained.scheduler()
    busy = replace(row, sampler=SAMPLERS[5])
    other = scheduler.submit(ImageJob(rows=(busy,), decode=False))
    drawn = scheduler.submit(ImageJob(rows=(row,)))
    refusals = []

    def scarce(runner: Runner, latents: torch.Tensor) -> torch.Tensor:
        if not other.ended:
            refusals.append(1)
            raise OutOfMemoryError("expected memory, got none")
        return pictures.decode(runner, latents)

    monkeypatch.setattr(drawing, "decode", scarce)
    told = drain(scheduler)
    assert isinstance(told[drawn][-1], Finished)
    assert [type(event) for event in told[drawn]].count(Progress) == 1
    assert len(refusals) == 1
    assert untrained.runner.leased == 0
