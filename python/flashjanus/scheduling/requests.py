"""What can be asked of the scheduler, and what it tells."""

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
    """Images that begin together. Result: pixels (R, 3, H, W), about [-1, 1], or, without `decode`, latents
    (R, c, H, W); float32, in order.

    preview_every: a Preview after every so many evaluations, 0 for none, of where the latents are heading: by a linear
    map to small pictures, or by the VAE, which costs as much as a picture, with full_previews and as long as there is
    no map (see latent_map.py). pauses: after each evaluation the images wait for `Scheduler.resume`; they are evaluated
    by themselves, so that nobody else waits with them. seeds: what the rows' noise was drawn from, for the record.
    """

    rows: tuple[FlowRequest, ...]
    seeds: tuple[int, ...] | None = None
    decode: bool = True
    preview_every: int = 0
    full_previews: bool = False
    pauses: bool = False


@dataclass(frozen=True, kw_only=True)
class TextJob:
    """An answer of up to `room` tokens, which ends with `eos`. Result: its ids; with room 0 the logits (V,), float32,
    of the next token. image_tokens: where the request has images. answer: what makes text of the tokens, and ends it.
    logprobs: each token is told with its log-probability, and with those of so many of the likeliest, 0 to 20; None:
    neither.
    """

    request: TextRequest
    room: int
    eos: int | None = None
    image_tokens: ImageTokens | None = None
    answer: Answer | None = None
    logprobs: int | None = None


Job: TypeAlias = ImageJob | TextJob


@dataclass(eq=False)
class Handle:
    """A job that was submitted. priority: the smaller, the earlier. deadline: seconds of the scheduler's clock.

    started: whether Started was told. cached: tokens of its prompt that were kept from an earlier one. flowed_at:
    time.perf_counter() when all latents of an image job were there.
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
        """Those that the job's rows run with."""
        requests = self.job.rows if isinstance(self.job, ImageJob) else (self.job.request,)
        return frozenset(request.adapter for request in requests if request.adapter is not None)


@dataclass(frozen=True)
class Started:
    """Its memory is there, and work on it begins."""

    handle: Handle


@dataclass(frozen=True)
class Progress:
    """Evaluation `step` of `steps` of an image job is done."""

    handle: Handle
    step: int
    steps: int


@dataclass(frozen=True)
class Preview:
    """Where an image job's latents are heading after evaluation `step`: images (R, 3, h, w) in [0, 1], float32."""

    handle: Handle
    step: int
    images: torch.Tensor


@dataclass(frozen=True)
class Token:
    """The next token of an answer, and the text that it completes, where the job makes text.

    logprob: its natural log-probability by the model's own distribution, before sampling options; likeliest: ids and
    log-probabilities of the likeliest tokens, the likeliest first and equally likely ones by id. Where the job asks for
    them.
    """

    handle: Handle
    id: int
    text: str
    logprob: float | None = None
    likeliest: tuple[tuple[int, float], ...] = ()


@dataclass(frozen=True)
class Finished:
    """A job's result. text: what of an answer's was held back."""

    handle: Handle
    result: Any
    text: str = ""


@dataclass(frozen=True)
class Failed:
    """A job that gives no result, and why."""

    handle: Handle
    error: FlashJanusError


@dataclass(frozen=True)
class Cancelled:
    """A job that nobody waits for any more."""

    handle: Handle


Event: TypeAlias = Started | Progress | Preview | Token | Finished | Failed | Cancelled
