"""Requests that the scheduler accepts, and the events that it returns."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import torch

from flashjanus.errors import FlashJanusError
from flashjanus.execution.adapters import Adapter
from flashjanus.execution.flow import FlowRequest
from flashjanus.execution.text import ImageTokens, TextRequest
from flashjanus.inputs.answers import Answer

_ORDER = itertools.count()


@dataclass(frozen=True, kw_only=True)
class ImageJob:
    """Images that begin together. The result is pixels (R, 3, H, W), about [-1, 1], or latents (R, c, H, W) without
    `decode`; both are float32 and in order.

    preview_every: send a Preview of the final images after every this many evaluations, 0 for none. A linear map makes
    small pictures; the VAE, which costs as much as a final picture, is used with full_previews and while there is no
    map yet (see latent_map.py). pauses: after each evaluation the images wait for `Scheduler.resume`; they are
    evaluated on their own, so that no other job waits with them. seeds: the seeds of the rows' noise, kept as a record.
    """

    rows: tuple[FlowRequest, ...]
    seeds: tuple[int, ...] | None = None
    decode: bool = True
    preview_every: int = 0
    full_previews: bool = False
    pauses: bool = False


@dataclass(frozen=True, kw_only=True)
class TextJob:
    """An answer of up to `room` tokens, which ends at `eos`. The result is its ids; with room 0 it is the logits
    (V,), float32, of the next token. image_tokens: given if the request has images. answer: turns tokens into text
    and decides where the text ends. logprobs: how many of the likeliest tokens to report with each token's own
    log-probability, 0 to 20; None reports no log-probabilities."""

    request: TextRequest
    room: int
    eos: int | None = None
    image_tokens: ImageTokens | None = None
    answer: Answer | None = None
    logprobs: int | None = None


Job: TypeAlias = ImageJob | TextJob


@dataclass(eq=False)
class Handle:
    """A submitted job. priority: smaller begins earlier. deadline: in seconds of the scheduler's clock.

    started: whether Started was sent. cached: tokens of its prompt that were reused from an earlier job. flowed_at:
    time.perf_counter() when the last latents of an image job were finished.
    """

    job: Job
    priority: int = 0
    deadline: float | None = None
    order: int = field(default_factory=lambda: next(_ORDER))
    started: bool = False
    cached: int = 0
    ended: bool = False
    flowed_at: float | None = None

    @property
    def adapters(self) -> frozenset[Adapter]:
        """The adapters of the job's rows."""
        requests = self.job.rows if isinstance(self.job, ImageJob) else (self.job.request,)
        return frozenset(request.adapter for request in requests if request.adapter is not None)


@dataclass(frozen=True)
class Started:
    """The job has its memory, and work on it begins."""

    handle: Handle


@dataclass(frozen=True)
class Progress:
    """Evaluation `step` of `steps` of an image job is done."""

    handle: Handle
    step: int
    steps: int


@dataclass(frozen=True)
class Preview:
    """A preview of the images that an image job is drawing, after evaluation `step`: (R, 3, h, w) in [0, 1],
    float32."""

    handle: Handle
    step: int
    images: torch.Tensor


@dataclass(frozen=True)
class Token:
    """The next token of an answer, and the text that it completes if the job makes text.

    logprob: the natural log-probability by the model's own distribution, before sampling options; likeliest: ids and
    log-probabilities of the likeliest tokens, the likeliest first and ties by id. Both are present if the job asks for
    them.
    """

    handle: Handle
    id: int
    text: str
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Finished:
    """A job's result. text: the part of an answer's text that was held back until now."""

    handle: Handle
    result: Any
    text: str = ""


@dataclass(frozen=True)
class Failed:
    """A job has failed, with the reason."""

    handle: Handle
    error: FlashJanusError


@dataclass(frozen=True)
class Cancelled:
    """A job was canceled by its caller."""

    handle: Handle


Event: TypeAlias = Started | Progress | Preview | Token | Finished | Failed | Cancelled
