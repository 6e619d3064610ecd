"""Blocking calls to the scheduler, which return latents, pictures, tokens or logits."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from typing import Any

import torch

from flashjanus.execution.flow import FlowRequest
from flashjanus.execution.text import ImageTokens, TextRequest
from flashjanus.scheduling.requests import Finished, ImageJob, Progress, TextJob, Token
from flashjanus.scheduling.shared import SharedScheduler

OnStep = Callable[[int, torch.Tensor, torch.Tensor], torch.Tensor | None]


@dataclass(frozen=True)
class Drawn:
    """result: latents (R, c, H, W) or pixels (R, 3, H, W), float32. flowed_at: time.perf_counter() when the last
    latents were finished."""

    result: torch.Tensor
    flowed_at: float


def draw(
    shared: SharedScheduler,
    requests: Sequence[FlowRequest],
    decode: bool = False,
    on_step: OnStep | None = None,
    trace: list[dict[str, Any]] | None = None,
) -> Drawn:
    """Draw the images of all requests, which begin together.

    `on_step(k, z, before)` runs after evaluation k with the latents in request order and those before the evaluation.
    If it returns latents, they replace z; a solver with memory keeps what it remembers. `trace` receives for each
    evaluation the latents `z` before it and the velocities `v_cond` and `v_uncond` (NaN in rows that did not need the
    unconditional branch, None if no row has one).
    """
    pauses = on_step is not None or trace is not None
    guided = any(request.schedule.guided for request in requests)
    job = ImageJob(rows=tuple(requests), decode=decode, pauses=pauses)
    before = _noise(shared, requests) if pauses else None
    with closing(shared.serve([job])) as events:
        for event in events:
            if isinstance(event, Finished):
                assert event.handle.flowed_at is not None
                return Drawn(event.result, event.handle.flowed_at)
            if not (pauses and isinstance(event, Progress)):
                continue
            assert before is not None
            latents = shared.latents(event.handle)
            if trace is not None:
                conditional, unconditional = shared.velocities(event.handle)
                trace.append({"z": before, "v_cond": conditional, "v_uncond": unconditional if guided else None})
            replaced = None if on_step is None else on_step(event.step - 1, latents, before)
            before = latents if replaced is None else replaced.float()
            shared.resume(event.handle, replaced)
    raise AssertionError("a job that ends has finished, or failed")


def _noise(shared: SharedScheduler, requests: Sequence[FlowRequest]) -> torch.Tensor:
    """The initial latents, rounded to the latents' dtype."""
    dtype = shared.scheduler.runner.policy.latents
    return torch.stack([request.noise.to(dtype).float() for request in requests])


def write(shared: SharedScheduler, jobs: Sequence[TextJob]) -> Iterator[tuple[int, Token | Finished]]:
    """Yield tokens and results of answers as they arrive, with the number of their job."""
    numbers = {id(job): n for n, job in enumerate(jobs)}
    with closing(shared.serve(jobs)) as events:
        for event in events:
            if isinstance(event, Token | Finished):
                yield numbers[id(event.handle.job)], event


def results(shared: SharedScheduler, jobs: Sequence[TextJob]) -> list[Any]:
    """Return the results of all jobs, in order."""
    found = {n: event.result for n, event in write(shared, jobs) if isinstance(event, Finished)}
    return [found[n] for n in range(len(jobs))]


def next_logits(shared: SharedScheduler, requests: Sequence[TextRequest], tokens: ImageTokens | None) -> torch.Tensor:
    """Logits (B, V), float32, of the token that follows each request."""
    return torch.stack(results(shared, [TextJob(request=r, room=0, image_tokens=tokens) for r in requests]))
