"""A row gives the same bits of work wherever it stands: in another session, at another place, beside others."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from flashjanus.engine.ops import all_ops
from flashjanus.sampling.tokens import Sampling
from flashjanus.scheduling.requests import Failed, Finished, Handle, ImageJob, TextJob
from flashjanus.scheduling.scheduler import Scheduler
from gpu_stand_in import stand_in
from small_jobs import SAMPLERS, TOKENS, alone, finished, image, jobs, rows_alone, small, text

TORCH = {name: ["torch"] for name in all_ops()}
PADDED = {"rows": [1, 2, 4], "prompt_tokens": [8, 32], "steps": [3, 5], "new_tokens": [8]}


def arriving(scheduler: Scheduler, some: list[Any], apart: int) -> dict[Handle, Any]:
    """Results of jobs of which one more comes after every so many steps."""
    found: dict[Handle, Any] = {}
    for job in some:
        scheduler.submit(job)
        for _ in range(apart):
            events = scheduler.step()
            found |= {event.handle: event.result for event in events if isinstance(event, Finished)}
    return found | finished(scheduler)


def assert_as_alone(found: dict[Handle, Any], due: dict[int, Any]) -> None:
    for handle, result in found.items():
        expected = due[id(handle.job)]
        if isinstance(expected, torch.Tensor):
            torch.testing.assert_close(result, expected, rtol=0, atol=1e-5)
        else:
            assert result == expected


@pytest.fixture(scope="module")
def due() -> dict[int, Any]:
    model = small()
    return {id(job): rows_alone(model, job) for job in jobs()}


@pytest.mark.parametrize("apart", [1, 2])
@pytest.mark.parametrize("buckets", [None, PADDED])
def test_rows_that_move_while_others_come_and_go(due: dict[int, Any], buckets: Any, apart: int) -> None:
    """Step caches, solvers with memory and rows without guidance, into places with a branch and without."""
    model = small(buckets=buckets)
    for order in (jobs(), jobs()[::-1]):
        found = arriving(model.scheduler(), list(order), apart)
        assert len(found) == len(jobs())
        assert_as_alone(found, due)
    assert model.runner.leased == 0


def test_rows_that_move_while_the_device_is_a_step_ahead(due: dict[int, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    """On the stand-in for a GPU, whose copies land late."""
    driver = stand_in(monkeypatch)
    with driver.copies:
        model = small(device="cuda", implementations=TORCH)
        some = [jobs()[n] for n in (10, 12, 0, 13, 11)]
        assert_as_alone(arriving(model.scheduler(), some, 1), due)
        assert model.runner.leased == 0


def test_an_answer_that_fills_its_room_while_the_device_is_a_step_ahead(monkeypatch: pytest.MonkeyPatch) -> None:
    """The step past its end has a key slot and a number; rooms are those of the bucket."""
    sampling = [Sampling(0.9, 20, 0.95, 1.1, n) for n in range(3)]
    some = [
        TextJob(request=replace(text(n, 7, 0, False), sampling=s), room=room, image_tokens=TOKENS)
        for n, (s, room) in enumerate(zip(sampling, (8, 8, 3), strict=True))
    ]
    cpu = small()
    expected = {id(job): alone(cpu, job) for job in some}
    driver = stand_in(monkeypatch)
    with driver.copies:
        model = small(device="cuda", implementations=TORCH, buckets={"new_tokens": [8], "prompt_tokens": [8]})
        for apart in (0, 1, 3, 9):
            assert_as_alone(arriving(model.scheduler(), some, apart), expected)


@pytest.mark.parametrize("buckets", [None, PADDED])
def test_what_is_not_finite_stays_in_its_row(buckets: Any) -> None:
    """Also for those that come after it, into the same memory. The noise overflows in the first evaluation."""
    model = small(buckets=buckets)
    good = [image(SAMPLERS[n], n, 5 + n) for n in (1, 6, 7, 2)]
    bad = [replace(row, noise=torch.full_like(row.noise, 3e38)) for row in good]
    due = [alone(model, ImageJob(rows=(row,), decode=False)) for row in good]
    scheduler = model.scheduler()
    handles = [scheduler.submit(ImageJob(rows=(row,), decode=False)) for row in bad]
    failed = 0
    while scheduler.busy:
        failed += sum(isinstance(event, Failed) for event in scheduler.step())
    assert failed == len(handles)
    for order in (1, -1):
        made = [scheduler.submit(ImageJob(rows=(row,), decode=False)) for row in good[::order]]
        found = finished(scheduler)
        for handle, expected in zip(made, due[::order], strict=True):
            torch.testing.assert_close(found[handle], expected, rtol=0, atol=1e-5)


def test_rows_have_the_same_bits_beside_a_row_that_is_not_finite() -> None:
    model = small(buckets=PADDED)
    rows = [image(SAMPLERS[n], n, 5 + n) for n in (1, 6, 7)]
    good = ImageJob(rows=(rows[0], rows[2]), decode=False)
    results = []
    for noise in (rows[1].noise, torch.full_like(rows[1].noise, 3e38)):
        scheduler = model.scheduler()
        handle = scheduler.submit(good)
        scheduler.submit(ImageJob(rows=(replace(rows[1], noise=noise),), decode=False))
        results.append(finished(scheduler)[handle])
    assert torch.equal(*results)
