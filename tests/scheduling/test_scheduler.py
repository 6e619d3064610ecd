"""Jobs in, events out: in which order, when, and what ends a job."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.errors import BusyError, DeadlineError, InputError
from flashjanus.inputs.answers import Answer
from flashjanus.scheduling.policy import Limits
from flashjanus.scheduling.requests import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Handle,
    ImageJob,
    Progress,
    TextJob,
    Token,
)
from flashjanus.scheduling.scheduler import Scheduler
from small_jobs import SAMPLERS, TOKENS, alone, drawn, events_of, finished, image, kinds, normal, small, text, written


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    return small()


@pytest.fixture(autouse=True)
def nothing_stays(model: JanusFlow) -> Any:
    yield
    assert model.runner.leased == 0


def until(scheduler: Scheduler, there: Callable[[], bool]) -> list[Event]:
    events: list[Event] = []
    for _ in range(200):
        if there():
            return events
        events += scheduler.step()
    raise AssertionError("it does not come")


def picture(untrained: JanusFlow, rows: int = 1, **options: Any) -> ImageJob:
    size = untrained.config.latent_size
    some = image(SAMPLERS[0], 1, 4)
    return ImageJob(rows=tuple(replace(some, noise=normal(n, 4, size, size)) for n in range(rows)), **options)


def test_an_image_is_started_progresses_and_is_finished(model: JanusFlow) -> None:
    scheduler = model.scheduler()
    assert not scheduler.busy
    handle = scheduler.submit(drawn(1, 2))
    assert (scheduler.busy, scheduler.queued, scheduler.live) == (True, 1, (0, 0))
    first = scheduler.step()
    assert (scheduler.queued, scheduler.live) == (0, (2, 0))
    events = first + events_of(scheduler)
    assert kinds(events) == ["Started", *["Progress"] * 4, "Finished"]
    assert [(e.step, e.steps) for e in events if isinstance(e, Progress)] == [(k, 4) for k in (1, 2, 3, 4)]
    assert all(event.handle is handle for event in events)
    assert isinstance(events[-1], Finished)
    assert events[-1].result.shape == (2, 4, 8, 8)
    assert handle.ended
    assert handle.flowed_at is not None
    assert (scheduler.busy, scheduler.live) == (False, (0, 0))
    assert scheduler.step() == []


def test_rows_of_a_job_with_fewer_steps_end_with_it(model: JanusFlow) -> None:
    job = ImageJob(rows=(image(SAMPLERS[0], 1, 4), image(SAMPLERS[2], 2, 5)), decode=False)
    scheduler = model.scheduler()
    scheduler.submit(job)
    events = events_of(scheduler)
    assert [(e.step, e.steps) for e in events if isinstance(e, Progress)] == [(k, 4) for k in (1, 2, 3, 4)]
    each = torch.cat([alone(model, replace(job, rows=(row,))) for row in job.rows])
    torch.testing.assert_close(events[-1].result, each, rtol=0, atol=1e-5)  # type: ignore[union-attr]


def test_an_answer_comes_token_by_token(untrained: JanusFlow) -> None:
    tokenizer = untrained.tokenizer
    assert tokenizer is not None
    scheduler = untrained.scheduler()
    job = replace(written(room=6), image_tokens=None, answer=Answer(tokenizer, ()))
    scheduler.submit(job)
    events = events_of(scheduler)
    assert kinds(events) == ["Started", *["Token"] * 6, "Finished"]
    last = events[-1]
    assert isinstance(last, Finished)
    assert [e.id for e in events if isinstance(e, Token)] == last.result
    due = Answer(tokenizer, ())
    assert [e.text for e in events if isinstance(e, Token)] == [due.push(token) for token in last.result]
    assert last.text == due.finish()
    assert untrained.runner.leased == 0


def test_an_answer_ends_with_its_end_token_and_where_room_is_0_there_are_logits(model: JanusFlow) -> None:
    ids = alone(model, written(room=4))
    assert alone(model, replace(written(room=4), eos=ids[1])) == ids[: 1 + ids.index(ids[1])]
    logits = alone(model, written(room=0))
    assert logits.dtype is torch.float32
    assert int(logits.argmax()) == ids[0]


def test_pictures_are_decoded_one_by_one(untrained: JanusFlow) -> None:
    scheduler = untrained.scheduler()
    handle = scheduler.submit(picture(untrained, 3))
    until(scheduler, lambda: handle.flowed_at is not None)
    steps = 0
    while scheduler.busy:
        (*_, last), steps = scheduler.step() or [None], steps + 1
    assert steps == 3
    assert isinstance(last, Finished)
    assert last.result.shape[0] == 3
    torch.testing.assert_close(
        last.result[1],
        untrained.decode_latents(alone(untrained, picture(untrained, 3, decode=False)))[1],
        rtol=0,
        atol=1e-4,
    )
    assert untrained.runner.leased == 0


def test_the_smaller_priority_begins_earlier_and_then_who_came_first(model: JanusFlow) -> None:
    scheduler = model.scheduler(Limits(images=1, answers=1))
    order = [scheduler.submit(written(n), priority=p) for n, p in enumerate((1, 0, 1, -1, 0))]
    ended = [event.handle for event in events_of(scheduler) if isinstance(event, Finished)]
    assert ended == [order[3], order[1], order[4], order[0], order[2]]


def test_a_job_that_waits_for_rows_of_its_kind_lets_the_other_kind_pass(model: JanusFlow) -> None:
    scheduler = model.scheduler(Limits(images=1))
    first, second, other = scheduler.submit(drawn(1)), scheduler.submit(drawn(2)), scheduler.submit(written())
    scheduler.step()
    assert scheduler.live == (1, 1)
    ended = [event.handle for event in events_of(scheduler) if isinstance(event, Finished)]
    assert ended.index(first) < ended.index(second)
    assert other in ended


def test_only_so_many_jobs_wait(model: JanusFlow) -> None:
    scheduler = model.scheduler(Limits(queued=2))
    scheduler.submit(written(1)), scheduler.submit(written(2))
    with pytest.raises(BusyError, match="expected at most 2 waiting jobs, got 2"):
        scheduler.submit(written(3))
    scheduler.step()
    scheduler.submit(written(3))
    assert kinds(events_of(scheduler)).count("Finished") == 3


@pytest.mark.parametrize("limits", [Limits(), Limits(answers=1)])
def test_a_job_past_its_deadline_fails(model: JanusFlow, limits: Limits) -> None:
    now = [100.0]
    scheduler = Scheduler(model.runner, limits, clock=lambda: now[0])
    other = scheduler.submit(written(1, room=30))
    late = scheduler.submit(written(2, room=30), deadline=5.0)
    for _ in range(6):
        assert not any(isinstance(event, Failed) for event in scheduler.step())
    now[0] = 105.5
    failed = [event for event in scheduler.step() if isinstance(event, Failed)]
    assert [event.handle for event in failed] == [late]
    assert isinstance(failed[0].error, DeadlineError)
    assert "0.5 s ago" in str(failed[0].error)
    assert scheduler.live == (0, 1)
    finished(scheduler)
    assert other.ended


STAGES: dict[str, Callable[[Scheduler, Handle], bool]] = {
    "queued": lambda scheduler, handle: True,
    "preparing": lambda scheduler, handle: scheduler.live[0] > 0,
    "evaluating": lambda scheduler, handle: scheduler._images._together.session is not None,
    "decoding": lambda scheduler, handle: handle.flowed_at is not None,
}


@pytest.mark.parametrize("stage", list(STAGES))
@pytest.mark.parametrize("beside", [False, True])
def test_an_image_can_be_cancelled_at_every_stage(untrained: JanusFlow, stage: str, beside: bool) -> None:
    scheduler = untrained.scheduler()
    size = untrained.config.latent_size
    rows = tuple(replace(image(SAMPLERS[2], n, 4 + n), noise=normal(n, 4, size, size)) for n in range(3))
    handle = scheduler.submit(ImageJob(rows=rows))
    job = ImageJob(rows=(replace(rows[0], prompt=rows[1].prompt),), decode=False)
    other = scheduler.submit(job) if beside else None
    events = until(scheduler, lambda: STAGES[stage](scheduler, handle))
    if stage == "decoding":
        events += scheduler.step()
    events += _assert_cancelled(scheduler, handle)
    if other is not None:
        events += events_of(scheduler)
        (found,) = (event.result for event in events if isinstance(event, Finished))
        torch.testing.assert_close(found, alone(untrained, job), rtol=0, atol=1e-5)
    assert (scheduler.live, scheduler.busy) == ((0, 0), False)
    assert untrained.runner.leased == 0


@pytest.mark.parametrize("steps", range(6))
def test_an_answer_can_be_cancelled_at_every_stage(model: JanusFlow, steps: int) -> None:
    """Queued; encoded images, one and two; read; a token, two tokens."""
    scheduler = model.scheduler(Limits(prefix_bytes=0))
    request = replace(text(0, 5, 2, False), pixels=normal(8, 2, 3, 32, 32))
    handle = scheduler.submit(TextJob(request=request, room=20, image_tokens=TOKENS))
    for _ in range(steps):
        scheduler.step()
    _assert_cancelled(scheduler, handle)
    assert (scheduler.live, scheduler.busy) == ((0, 0), False)


def _assert_cancelled(scheduler: Scheduler, handle: Handle) -> list[Event]:
    """What else there was to tell."""
    assert scheduler.cancel(handle)
    assert handle.ended
    assert not scheduler.cancel(handle), "it has ended"
    every = scheduler.step()
    events = [event for event in every if event.handle is handle]
    assert isinstance(events[-1], Cancelled)
    assert not any(isinstance(event, Cancelled | Finished) for event in events[:-1])
    return [event for event in every if event.handle is not handle]


def test_a_job_that_has_finished_is_not_cancelled(model: JanusFlow) -> None:
    scheduler = model.scheduler()
    handle = scheduler.submit(written())
    finished(scheduler)
    assert not scheduler.cancel(handle)
    assert not scheduler.busy


ROW = image(SAMPLERS[0], 1, 4)


@pytest.mark.parametrize(
    ("job", "message"),
    [
        ("an image", "job: expected an ImageJob with at least 1 row or a TextJob"),
        (ImageJob(rows=()), "job: expected an ImageJob with at least 1 row"),
        (drawn(1, decode=True), "job: expected decode=False, because this model has no VAE"),
        (drawn(1, preview_every=-1), "job.preview_every: expected an integer from 0"),
        (ImageJob(rows=("a",), decode=False), r"job.rows\[0\]: expected a FlowRequest"),  # type: ignore[arg-type]
        (ImageJob(rows=(replace(ROW, noise=ROW.noise[:3]),), decode=False), r"job.rows\[0\].noise: expected shape"),
        (
            ImageJob(rows=(replace(ROW, prompt=()),), decode=False),
            r"job.rows\[0\].prompt: expected a tuple of 1 to 111",
        ),
        (ImageJob(rows=(replace(ROW, prompt=(80,)),), decode=False), "token id: expected an integer from 0 to 79"),
        (written(room=-1), "job.room: expected an integer from 0"),
        (written(room=124), "job.room: expected an integer from 0 to 123"),
        (replace(written(), eos=80), "job.eos: expected an integer"),
        (replace(written(), request="hello"), "job.request: expected a TextRequest"),
        (
            replace(written(), request=replace(written().request, ids=())),
            "job.request.ids: expected a tuple of 1 to 128",
        ),
        (
            replace(written(), request=replace(written().request, pixels=torch.zeros(1, 3, 8, 8))),
            "job.request.pixels: expected shape",
        ),
    ],
)
def test_what_is_no_job_is_refused(model: JanusFlow, job: Any, message: str) -> None:
    scheduler = model.scheduler()
    with pytest.raises(InputError, match=message):
        scheduler.submit(job)
    assert not scheduler.busy


@pytest.mark.parametrize("option", [dict(priority="high"), dict(deadline=-1.0), dict(deadline="soon")])
def test_what_is_no_priority_or_deadline_is_refused(model: JanusFlow, option: Any) -> None:
    scheduler = model.scheduler()
    with pytest.raises(InputError, match=f"{next(iter(option))}: expected"):
        scheduler.submit(written(), **option)
    scheduler.submit(written())
    assert len(finished(scheduler)) == 1
