"""Whatever comes, goes and ends beside it, a job gives what it gives alone, and nothing of it stays."""

from __future__ import annotations

from functools import cache
from typing import Any

import pytest
import torch
from flashjanus import JanusFlow
from flashjanus.scheduling.policy import Limits
from flashjanus.scheduling.requests import Cancelled, Finished, Handle, ImageJob, Started
from hypothesis import HealthCheck, event, given, settings
from hypothesis import strategies as st
from small_jobs import finished, jobs, rows_alone, small

ALONE = 1e-5

ACTIONS = st.one_of(
    st.tuples(st.just("submit"), st.integers(0, len(jobs()) - 1)),
    st.tuples(st.just("cancel"), st.integers(0, 9)),
    st.tuples(st.just("step"), st.integers(1, 6)),
)
LIMITS = st.builds(
    Limits,
    images=st.sampled_from([1, 3, 32]),
    answers=st.sampled_from([1, 2, 64]),
    row_bytes=st.sampled_from([1, 400_000, 1 << 30]),
    prefix_bytes=st.sampled_from([0, 60_000, 1 << 28]),
)


IMAGES = [number for number, job in enumerate(jobs()) if isinstance(job, ImageJob)]


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    return small()


@pytest.fixture(scope="module")
def expected(model: JanusFlow) -> list[Any]:
    return [rows_alone(model, job) for job in jobs()]


@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.too_slow], derandomize=True)
@given(st.lists(ACTIONS, min_size=10, max_size=40), LIMITS)
def test_a_job_gives_what_it_gives_alone(
    model: JanusFlow, expected: list[Any], history: list[tuple[str, int]], limits: Limits
) -> None:
    scheduler = model.scheduler(limits)
    handles: list[Handle] = []
    numbers: dict[Handle, int] = {}
    told: dict[Handle, list[Any]] = {}

    def step() -> None:
        for one in scheduler.step():
            told[one.handle].append(one)

    for action, number in history:
        if action == "submit":
            handle = scheduler.submit(jobs()[number])
            handles.append(handle)
            numbers[handle], told[handle] = number, []
        elif action == "cancel" and number < len(handles):
            scheduler.cancel(handles[number])
        elif action == "step":
            for _ in range(number):
                step()
    while scheduler.busy:
        step()
    event(f"{len(handles) // 4 * 4} jobs or more")
    for handle, events in told.items():
        *before, last = events
        assert handle.ended
        assert not any(isinstance(one, Finished | Cancelled) for one in before), "it ends once"
        if isinstance(last, Cancelled):
            continue
        assert isinstance(last, Finished), last
        assert isinstance(before[0], Started)
        due = expected[numbers[handle]]
        if isinstance(due, torch.Tensor):
            torch.testing.assert_close(last.result, due, rtol=0, atol=ALONE)
        else:
            assert last.result == due
    assert scheduler.live == (0, 0)
    assert scheduler.queued == 0
    assert model.runner.leased == 0
    assert scheduler.prefixes.nbytes <= limits.prefix_bytes


@pytest.mark.parametrize(
    "form", [dict(dtype="bfloat16"), dict(dtype="bfloat16", quantization="int8")], ids=["bf16", "int8"]
)
@settings(max_examples=40, deadline=None, suppress_health_check=[*HealthCheck], derandomize=True, print_blob=False)
@given(st.lists(st.tuples(st.sampled_from(IMAGES), st.integers(0, 4)), min_size=2, max_size=6))
def test_an_image_has_the_bits_that_it_has_alone(form: dict[str, str], history: list[tuple[int, int]]) -> None:
    model, expected = formed(tuple(form.items()))
    scheduler = model.scheduler()
    numbers, found = {}, {}
    for number, steps in history:
        numbers[scheduler.submit(jobs()[number])] = number
        for _ in range(steps):
            found.update({one.handle: one.result for one in scheduler.step() if isinstance(one, Finished)})
    found |= finished(scheduler)
    for handle, number in numbers.items():
        assert torch.equal(found[handle], expected[number]), number


@cache
def formed(form: tuple[tuple[str, str], ...]) -> tuple[JanusFlow, dict[int, torch.Tensor]]:
    made = small(**dict(form))
    return made, {number: rows_alone(made, jobs()[number]) for number in IMAGES}
