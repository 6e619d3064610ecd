"""Whose turn it is: nobody waits for ever."""

from __future__ import annotations

from itertools import pairwise

import pytest
from flashjanus import JanusFlow
from flashjanus.scheduling.policy import Limits, Turns
from flashjanus.scheduling.requests import Finished, Handle, ImageJob, Started, TextJob
from flashjanus.scheduling.scheduler import Scheduler
from small_jobs import SAMPLERS, TOKENS, image, small, text


@pytest.fixture(scope="module")
def model() -> JanusFlow:
    return small()


def images(count: int, sampler: int = 2) -> ImageJob:
    return ImageJob(rows=tuple(image(SAMPLERS[sampler], n, 5) for n in range(count)), decode=False)


def answer(seed: int, room: int = 4) -> TextJob:
    return TextJob(request=text(seed, 4, 0, False), room=room, image_tokens=TOKENS)


def test_a_job_of_many_rows_is_not_passed_by_small_ones_of_its_kind(model: JanusFlow) -> None:
    scheduler = model.scheduler(Limits(images=3))
    scheduler.submit(images(1))
    large = scheduler.submit(images(3))
    started: list[Handle] = []
    for _ in range(60):
        if len(scheduler._book.queue) < 3:
            scheduler.submit(images(1))  # there is always another one
        started += [event.handle for event in scheduler.step() if isinstance(event, Started)]
        if large in started:
            break
    assert started[1] is large
    assert len(started) == 2


def test_an_image_begins_although_there_is_always_another_conversation_to_read(model: JanusFlow) -> None:
    scheduler = model.scheduler(Limits(prefix_bytes=0))
    drawn = scheduler.submit(images(1))
    for n in range(200):
        while scheduler.queued < 2:
            scheduler.submit(answer(n, room=0))
        if any(isinstance(e, Finished) and e.handle is drawn for e in scheduler.step()):
            return
    raise AssertionError("the image waits for conversations that came after it")


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def served(turns: Turns, clock: Clock, costs: dict[str, float], steps: int, gathering: bool = False) -> list[str]:
    """What goes, where there is always something of each kind that has costs."""
    order = []
    for _ in range(steps):
        began = clock.now
        pieces, others = "piece" in costs, "evaluation" in costs
        if "tokens" in costs and (turns.tokens_next() or not (pieces or others)):
            kind = "tokens"
        else:
            kind = "piece" if turns.piece_next(pieces, others, gathering) else "evaluation"
        clock.now += costs[kind]
        turns.took(kind, began)
        order.append(kind)
    return order


@pytest.mark.parametrize("token", [0.001, 0.1, 3.0])
@pytest.mark.parametrize("piece", [0.01, 1.0, 7.0])
def test_a_token_comes_between_any_two_other_pieces_of_work(token: float, piece: float) -> None:
    clock = Clock()
    order = served(Turns(clock), clock, {"tokens": token, "piece": piece, "evaluation": 1.0}, 30_000)
    assert all("tokens" in pair for pair in pairwise(order))
    spent = {kind: order.count(kind) * cost for kind, cost in (("piece", piece), ("evaluation", 1.0))}
    # as much of the one as of the other, or one of them where it takes longer than the other's turn
    assert 0.9 < spent["piece"] / spent["evaluation"] < max(1.1, 1.1 * piece)


def test_tokens_get_their_share_and_no_more() -> None:
    clock = Clock()
    order = served(Turns(clock), clock, {"tokens": 0.01, "evaluation": 1.0}, 5000)
    assert order.count("tokens") * 0.01 / (order.count("evaluation") * 1.0) == pytest.approx(Turns.ANSWERS, rel=0.05)


def test_work_of_one_kind_alone_never_waits() -> None:
    for kind in ("tokens", "piece", "evaluation"):
        clock = Clock()
        assert served(Turns(clock), clock, {kind: 1.0}, 5) == [kind] * 5


def test_a_job_larger_than_all_limits_is_served_alone(model: JanusFlow) -> None:
    scheduler = model.scheduler(Limits(images=1, answers=1, row_bytes=1))
    handles = [scheduler.submit(job) for job in (images(3), answer(1), images(2))]
    ended = []
    while scheduler.busy:
        alone_of = scheduler.live
        assert alone_of[0] == 0 or alone_of[1] == 0
        ended += [event.handle for event in scheduler.step() if isinstance(event, Finished)]
    assert ended == handles


def running(scheduler: Scheduler) -> int:
    return sum(scheduler.live)


def test_admission_by_bytes_lets_nobody_pass(model: JanusFlow) -> None:
    probe = model.scheduler()
    small_bytes, large_bytes = probe._bytes(answer(1)), probe._bytes(images(2))
    scheduler = model.scheduler(Limits(row_bytes=large_bytes + small_bytes // 2))
    first, large, last = (scheduler.submit(job) for job in (answer(1), images(2), answer(2)))
    started = []
    while scheduler.busy:
        started += [event.handle for event in scheduler.step() if isinstance(event, Started)]
        held = sum(work.nbytes for work in scheduler._book.works.values())
        assert held <= large_bytes + small_bytes // 2
    assert started == [first, large, last]
