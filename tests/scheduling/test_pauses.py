"""Jobs that pause after each evaluation: what they show, who waits with them, and how they go on."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.errors import InputError
from flashjanus.execution.flow import FlowRequest, FlowSession, Prepared
from flashjanus.sampling.schedule import Sampler
from flashjanus.scheduling.requests import Finished, ImageJob, Progress
from small_jobs import alone, drawn, events_of, finished, image, kinds, small, written


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    return small()


@pytest.fixture(autouse=True)
def nothing_stays(model: JanusFlow) -> Any:
    yield
    assert model.runner.leased == 0


def test_a_job_that_pauses_waits_alone(model: JanusFlow) -> None:
    due, other = alone(model, drawn(1, 2)), alone(model, drawn(3))
    scheduler = model.scheduler()
    pausing, beside = scheduler.submit(drawn(1, 2, pauses=True)), scheduler.submit(drawn(3))
    events = events_of(scheduler)
    assert scheduler.waits
    assert scheduler.busy
    assert [event.step for event in events if isinstance(event, Progress) and event.handle is pausing] == [1]
    results = {event.handle: event.result for event in events if isinstance(event, Finished)}
    torch.testing.assert_close(results[beside], other, rtol=0, atol=1e-5)
    assert scheduler.step() == []
    answer = scheduler.submit(written())
    assert not scheduler.waits, "there is something to do"
    assert any(isinstance(event, Finished) and event.handle is answer for event in events_of(scheduler))
    for _ in range(4):
        z = scheduler.latents(pausing)
        assert z.shape == (2, 4, 8, 8)
        conditional, unconditional = scheduler.velocities(pausing)
        assert conditional.isfinite().all()
        assert unconditional.isfinite().all()
        scheduler.resume(pausing)
        events = events_of(scheduler)
    assert isinstance(events[-1], Finished)
    torch.testing.assert_close(events[-1].result, due, rtol=0, atol=1e-5)


def test_two_jobs_that_pause_do_not_wait_for_each_other(model: JanusFlow) -> None:
    scheduler = model.scheduler()
    one, two = (scheduler.submit(drawn(n, pauses=True)) for n in (1, 2))
    events_of(scheduler)
    for _ in range(3):
        scheduler.resume(one)
        events_of(scheduler)
    scheduler.resume(one)
    assert isinstance(events_of(scheduler)[-1], Finished)
    assert not two.ended
    assert scheduler.cancel(two), "paused"
    assert kinds(scheduler.step()) == ["Cancelled"]
    assert not scheduler.busy


def test_latents_of_a_job_that_pauses_are_replaced(model: JanusFlow) -> None:
    scheduler = model.scheduler()
    handle = scheduler.submit(drawn(1, 2, sampler=0, pauses=True))
    events_of(scheduler)
    for wrong in (torch.zeros(1, 4, 8, 8), torch.zeros(2, 4, 8, 1), torch.zeros(2, 4, 8, 8, dtype=torch.int64)):
        with pytest.raises(InputError, match="latents: expected"):
            scheduler.resume(handle, wrong)
    scheduler.resume(handle, torch.full((2, 4, 8, 8), 0.5))
    last = events_of(scheduler)[-1]
    assert isinstance(last, Finished)
    assert torch.equal(last.result, torch.full((2, 4, 8, 8), 0.5))


def test_what_the_language_model_added_is_kept_where_it_ran(model: JanusFlow) -> None:
    """As a session that is driven by hand has it in its slots; rows with guidance, without, and in an interval."""
    samplers = [
        Sampler(5, 3.0, step_cache=(0.0, 0.5)),
        Sampler(5, 1.0, step_cache=2),
        Sampler(5, 3.0, guidance_interval=(0.0, 0.5), step_cache=(0.0, 0.2, 0.4, 0.6, 0.8)),
    ]
    rows = tuple(image(sampler, 1, 9) for sampler in samplers)
    scheduler = model.scheduler()
    handle = scheduler.submit(ImageJob(rows=rows, decode=False, pauses=True))
    by_hand = [session_of(model, row) for row in rows]
    for step in range(5):
        events_of(scheduler)
        found = scheduler.added(handle)
        assert [t.shape for t in found] == [(3, 16, 64)] * 2
        for n, (row, session) in enumerate(zip(rows, by_hand, strict=True)):
            session.step()
            ran, branch = row.schedule.needs_model(step), row.schedule.needs_branch(step)
            slot = session.flow.states[f"slot_{int(row.schedule.cache[step].slot)}"] if ran else None
            for at, due in enumerate((ran, ran and branch)):
                expected = torch.full((16, 64), torch.nan) if slot is None or not due else slot[at]
                torch.testing.assert_close(found[at][n], expected, rtol=0, atol=1e-5, equal_nan=True)
        scheduler.resume(handle)
    assert isinstance(events_of(scheduler)[-1], Finished)


def session_of(model: JanusFlow, row: FlowRequest) -> FlowSession:
    guided = int(row.schedule.guided)
    prepared, session = (
        Prepared(model.runner, 1, guided, 16, 5),
        FlowSession(model.runner, 1, guided, 16, 5, False, True),
    )
    prepared.run([row.timed_prompt])
    session.join(prepared.prefix(0), 0, row)
    return session


def test_rows_that_keep_nothing_have_nothing_to_show(model: JanusFlow) -> None:
    scheduler = model.scheduler()
    handle = scheduler.submit(drawn(1, pauses=True))
    events_of(scheduler)
    with pytest.raises(InputError, match="expected a job whose rows all use a step cache"):
        scheduler.added(handle)
    scheduler.cancel(handle)
    assert kinds(scheduler.step()) == ["Cancelled"]


@pytest.mark.parametrize("ask", ["resume", "latents", "velocities", "added"])
def test_a_job_that_is_not_paused_is_not_resumed(model: JanusFlow, ask: str) -> None:
    scheduler = model.scheduler()
    handle = scheduler.submit(drawn(1))
    method = getattr(scheduler, ask)
    with pytest.raises(InputError, match="expected a paused job, got one that has ended or waits"):
        method(handle)
    scheduler.step(), scheduler.step()
    with pytest.raises(InputError, match="expected a paused job, got one that is running"):
        method(handle)
    finished(scheduler)
    with pytest.raises(InputError, match="expected a paused job, got one that has ended or waits"):
        method(handle)
