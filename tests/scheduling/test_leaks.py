"""Requests that come and go leave nothing."""

from __future__ import annotations

import gc
import random
from pathlib import Path

import pytest
from flashjanus.sampling.schedule import Sampler
from flashjanus.scheduling.policy import Limits
from flashjanus.scheduling.requests import Handle, ImageJob, TextJob
from small_jobs import TOKENS, image, small, text

REQUESTS, SETTLED = 600, 200
"""All, and those after which memory is taken to be what serving needs: sessions of all buckets are there by then."""
GROWTH = 0.02
PREFIXES = 100_000


def resident() -> int:
    """Bytes of this process in memory."""
    gc.collect()
    status = Path("/proc/self/statm")
    if not status.exists():
        pytest.skip("no /proc here")
    return int(status.read_text().split()[1]) * 4096


def test_many_requests_of_which_a_third_is_cancelled_leave_nothing() -> None:
    model, draw = small(), random.Random(1)
    scheduler = model.scheduler(Limits(images=3, answers=3, prefix_bytes=PREFIXES))
    kinds = Sampler(2, 1.0), Sampler(3, 2.0)

    def job() -> ImageJob | TextJob:
        seed, length = draw.randrange(40), draw.randint(2, 14)
        if draw.random() < 0.5:
            rows = tuple(image(draw.choice(kinds), seed, length) for _ in range(draw.randint(1, 2)))
            return ImageJob(rows=rows, decode=False, pauses=draw.random() < 0.1)
        request = text(seed, length, draw.randrange(2), draw.random() < 0.5)
        return TextJob(request=request, room=draw.choice((0, 6)), image_tokens=TOKENS)

    live: list[Handle] = []
    done = cancelled = settled = 0
    while done < REQUESTS or scheduler.busy:
        while done < REQUESTS and scheduler.queued < 3:
            live.append(scheduler.submit(job()))
            done += 1
            if done == SETTLED:
                settled = resident()
        if live and (draw.random() < 0.13 or scheduler.waits):
            cancelled += scheduler.cancel(draw.choice(live))
        scheduler.step()
        live = [handle for handle in live if not handle.ended]
    assert 0.3 < cancelled / REQUESTS < 0.4
    assert scheduler.live == (0, 0)
    assert scheduler.queued == 0
    assert model.runner.leased == 0
    assert 0 < scheduler.prefixes.nbytes <= PREFIXES
    assert scheduler.prefixes.evicted > 0
    assert resident() < (1 + GROWTH) * settled
