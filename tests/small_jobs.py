"""Jobs of the small model, of every kind, and what each gives alone."""

from __future__ import annotations

from dataclasses import replace
from functools import cache
from typing import Any

import torch
from flashjanus import JanusFlow
from flashjanus.execution.flow import FlowRequest
from flashjanus.execution.text import ImageTokens, TextRequest
from flashjanus.sampling.schedule import Sampler
from flashjanus.sampling.tokens import Sampling
from flashjanus.scheduling.requests import Event, Finished, Handle, ImageJob, Job, TextJob
from flashjanus.scheduling.scheduler import Scheduler
from small_model import FEATURES, IMAGE, IMAGE_SIZE, LATENT, START, normal, small_config, small_state

SAMPLERS = (
    Sampler(1, 2.0),
    Sampler(3, 1.0),
    Sampler(4, 3.0),
    Sampler(4, 3.0, "ab2", timestep_shift=0.7),
    Sampler(5, 2.0, guidance_interval=(0.3, 0.9), guidance_rescale=0.5),
    Sampler(5, 4.0, uncond_every=2),
    Sampler(5, 2.0, step_cache=3),
    Sampler(5, 2.0, "ab2", guidance_interval=(0.0, 0.5), step_cache=(0.0, 0.5)),
)
TOKENS = ImageTokens(START, IMAGE)


def prompt(seed: int, length: int) -> list[int]:
    """Ids of a text without its BOS."""
    return torch.randint(1, 70, (length,), generator=torch.Generator().manual_seed(seed)).tolist()


def small(dtype: str = "float32", device: str = "cpu", **options: Any) -> JanusFlow:
    config = small_config()
    return JanusFlow.from_state_dict(config, small_state(config), device=device, dtype=dtype, **options)


def image(sampler: Sampler, seed: int, length: int) -> FlowRequest:
    return FlowRequest(tuple(prompt(seed, length)), sampler, normal(seed, *LATENT))


def text(seed: int, length: int, images: int, sampled: bool) -> TextRequest:
    block = [START, *[IMAGE] * FEATURES]
    pixels = normal(seed % 2, images, 3, IMAGE_SIZE, IMAGE_SIZE) if images else None
    sampling = Sampling(0.9, 20, 0.95, 1.1, seed) if sampled else Sampling()
    return TextRequest((0, *block * images, *prompt(seed, length)), pixels, sampling)


@cache
def jobs() -> tuple[Job, ...]:
    images = [ImageJob(rows=(image(s, n, 1 + 7 * n % 33),), decode=False) for n, s in enumerate(SAMPLERS)]
    several = ImageJob(rows=tuple(image(SAMPLERS[n], 10 + n, 4 + n) for n in (1, 2, 6)), decode=False)
    answers = [
        TextJob(request=text(n, length, images, n % 2 == 1), room=room, image_tokens=TOKENS)
        for n, (length, images, room) in enumerate([(3, 0, 1), (20, 0, 6), (5, 1, 4), (9, 2, 3), (2, 1, 7), (40, 0, 0)])
    ]
    return *images, several, *answers


def drawn(*seeds: int, sampler: int = 2, **options: Any) -> ImageJob:
    """Images of a prompt each, which are not decoded."""
    return ImageJob(rows=tuple(image(SAMPLERS[sampler], n, 4 + n) for n in seeds), **({"decode": False} | options))


def written(seed: int = 1, room: int = 4, images: int = 0) -> TextJob:
    """A greedy answer."""
    return TextJob(request=text(seed, 5, images, False), room=room, image_tokens=TOKENS)


def events_of(scheduler: Scheduler) -> list[Event]:
    """Until all jobs have ended or pause."""
    events: list[Event] = []
    while scheduler.busy and not scheduler.waits:
        events += scheduler.step()
    return events


def finished(scheduler: Scheduler) -> dict[Handle, Any]:
    """The results of all jobs, once the scheduler has served them."""
    found: dict[Handle, Any] = {}
    while scheduler.busy:
        found.update({event.handle: event.result for event in scheduler.step() if isinstance(event, Finished)})
    return found


def alone(model: JanusFlow, job: Job) -> Any:
    """Of a job that nobody was beside, or before."""
    scheduler = model.scheduler()
    scheduler.submit(job)
    (result,) = finished(scheduler).values()
    return result


def rows_alone(model: JanusFlow, job: Job) -> Any:
    """As `alone`, each image of a job by itself."""
    if isinstance(job, TextJob):
        return alone(model, job)
    return torch.cat([alone(model, replace(job, rows=(row,))) for row in job.rows])


def kinds(events: list[Event]) -> list[str]:
    return [type(event).__name__ for event in events]
