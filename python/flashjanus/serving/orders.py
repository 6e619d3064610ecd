"""Turns requests into jobs: parsing, which any thread may do, and the steps that follow from the jobs' results."""

from __future__ import annotations

from collections.abc import Generator, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from typing import Any, TypeAlias

import numpy as np
import torch

from flashjanus.api import best_of as choosing
from flashjanus.api.drawing import ROWS_AT_ONCE
from flashjanus.api.janusflow import JanusFlow
from flashjanus.errors import InputError
from flashjanus.execution.likelihood import MOST_LIKELIEST
from flashjanus.inputs.images import to_pil
from flashjanus.sampling import checks
from flashjanus.sampling.fields import JSON_TYPES, Options, options_of
from flashjanus.sampling.noise import seeds_of
from flashjanus.sampling.options import ImageOptions, TokenOptions
from flashjanus.scheduling.requests import ImageJob, Job, TextJob
from flashjanus.scheduling.scheduler import MOST
from flashjanus.serving.messages import (
    Accepted,
    Answered,
    ChatRequest,
    ImageRequest,
    Images,
    Picture,
    Request,
    Usage,
)

Course: TypeAlias = Generator[Sequence[Job], list[Any], Images | Answered]
"""Yields jobs that may run together, receives their results, and returns the last event."""

NOT_SERVED = ("output_type", "generator", "latents", "callback_on_step_end")
"""Options of a call that no served request has."""


@dataclass(frozen=True)
class Order:
    """A valid request and its jobs."""

    request: Request
    accepted: Accepted
    course: Course


def order(model: JanusFlow, request: Request) -> Order:
    """Parse a request. Raises InputError if it is invalid."""
    checks.integer("priority", request.priority, -MOST, MOST)
    if request.deadline is not None:
        checks.number("deadline", request.deadline, 0.0, MOST)
    return _images(model, request) if isinstance(request, ImageRequest) else _answer(model, request)


def _images(model: JanusFlow, request: ImageRequest) -> Order:
    options = checked(ImageOptions, request.options)
    checks.integer("previews", request.previews, 0, checks.MAX_STEPS)
    chosen = options.best_of is not None or options.accept_above is not None
    if chosen and request.previews:
        raise InputError(f"previews: expected 0 with best_of, which shows no candidates, got {request.previews}")
    job = model.image_job(request.prompt, **_plain(options))
    steps = max(len(row.schedule) for row in job.rows)
    if request.previews:
        every = max(1, steps // (request.previews + 1))
        job = replace(job, preview_every=every, full_previews=request.full_previews)
    prompt = len(job.rows[0].prompt) + 1  # plus the generation tag
    course = _chosen(model, request, options, prompt) if chosen else _drawn(model, job, prompt)
    return Order(request, Accepted(prompt, 0, steps), course)


def _drawn(model: JanusFlow, job: ImageJob, prompt: int) -> Course:
    [decoded] = yield [job]
    images = [picture(image) for image in decoded]
    usage = Usage(prompt, 0, len(images) * model.config.num_image_tokens)
    return Images(images, job.seeds, None, usage)


def _chosen(model: JanusFlow, request: ImageRequest, options: ImageOptions, prompt: int) -> Course:
    """Draw candidates, judge them and keep the best: `api/best_of.py` as jobs."""
    tokenizer = model.tokenizer
    assert tokenizer is not None  # the prompt was made with it
    choice = choosing.Choice.of(model, tokenizer, [request.prompt], options)
    seeds = seeds_of(options.seed, choice.candidates)

    def course() -> Course:
        kept: list[tuple[float, int, Picture]] = []
        drawn = enough = 0
        while drawn < choice.candidates and enough < choice.images:
            batch = ROWS_AT_ONCE if choice.enough is None else choice.images
            own = seeds[drawn : min(drawn + batch, choice.candidates)]
            job = model.image_job(request.prompt, **_plain(options, num_images_per_prompt=len(own), seed=own))
            [decoded] = yield [job]
            shown = [to_pil(image) for image in decoded]
            asked = [*choice.checks] * len(shown)
            scores = choosing.scores(tokenizer, asked, (yield choosing.questions(model, tokenizer, shown, asked)))
            found = zip(scores, own, map(np.asarray, shown), strict=True)
            kept = sorted([*kept, *found], key=lambda one: -one[0])[: choice.images]
            drawn += len(own)
            enough = 0 if choice.enough is None else sum(score >= choice.enough for score, _, _ in kept)
        usage = Usage(prompt, 0, drawn * model.config.num_image_tokens)
        return Images([p for _, _, p in kept], [seed for _, seed, _ in kept], [score for score, _, _ in kept], usage)

    return course()


def _answer(model: JanusFlow, request: ChatRequest) -> Order:
    options = checked(TokenOptions, request.options)
    if request.logprobs is not None:
        checks.integer("logprobs", request.logprobs, 0, MOST_LIKELIEST)
    job = replace(model.text_job(request.messages, **vars(options)), logprobs=request.logprobs)
    prompt, images = len(job.request.ids), 0 if job.request.pixels is None else len(job.request.pixels)
    seen = images * model.config.num_understanding_tokens
    return Order(request, Accepted(prompt, seen), _answered(job, prompt, seen))


def _answered(job: TextJob, prompt: int, seen: int) -> Course:
    [ids] = yield [job]
    assert job.answer is not None
    reason = "stop" if job.answer.ended or ids[-1] == job.eos else "length"
    return Answered("", reason, Usage(prompt, seen, len(ids)))


def checked(kind: type[Any], given: Mapping[str, Any]) -> Any:
    """The options of a request. Raises InputError for an unknown or invalid option."""
    known = {name: one for name, one in options_of(kind).items() if one.kind in JSON_TYPES and name not in NOT_SERVED}
    for name in given:
        if name not in known:
            raise InputError(f"{name}: expected an option of a request ({', '.join(known)})")
    options: Options = kind(**given)
    return options.checked()


def _plain(options: ImageOptions, **changed: Any) -> dict[str, Any]:
    """The options for `JanusFlow.image_job`."""
    given = {one.name: getattr(options, one.name) for one in fields(options)}
    return {**given, "best_of": None, "accept_above": None, "judge": None, **changed}


def picture(image: torch.Tensor) -> Picture:
    """Convert pixels (3, H, W), about [-1, 1], to a picture."""
    return np.asarray(to_pil(image))


def shown(image: torch.Tensor) -> Picture:
    """Convert a preview (3, h, w) in [0, 1] to a picture."""
    return (image.clamp(0, 1) * 255).to(torch.uint8).permute(1, 2, 0).cpu().numpy()
