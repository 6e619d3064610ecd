"""Requests to a served model and the events that it sends: plain data, which crosses to another process unchanged."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from flashjanus.errors import DeviceError, FlashJanusError

Picture: TypeAlias = npt.NDArray[np.uint8]
"""RGB, (H, W, 3)."""


@dataclass(frozen=True, kw_only=True)
class ImageRequest:
    """A request for images of one prompt. options: those of `JanusFlow.generate_image` that JSON can hold.

    previews: the most partial images to send, spread evenly over the steps; the linear map makes them, or the VAE with
    full_previews. steps: whether to send a Step for each evaluation; each one wakes the listener while the engine's
    threads compute. priority: smaller runs earlier. deadline: seconds from now.
    """

    prompt: str
    options: Mapping[str, Any] = field(default_factory=dict)
    previews: int = 0
    full_previews: bool = False
    steps: bool = True
    priority: int = 0
    deadline: float | None = None


@dataclass(frozen=True, kw_only=True)
class ChatRequest:
    """A request for the answer to a conversation. messages, options: as in `JanusFlow.chat`; images are encoded bytes,
    PIL images or arrays (H, W, 3), uint8.

    logprobs: how many of the likeliest tokens to send with each token's own log-probability, 0 to 20; None sends no
    log-probabilities.
    """

    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    logprobs: int | None = None
    priority: int = 0
    deadline: float | None = None


Request: TypeAlias = ImageRequest | ChatRequest


@dataclass(frozen=True)
class Usage:
    """The tokens of a request: those of its prompt, of which image_tokens stand for images, and those generated.
    cached_tokens: tokens of the prompt that were not computed, because an earlier request began the same way."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Accepted:
    """The request is valid and waits for its turn. steps: evaluations of each of its images, 0 for an answer."""

    prompt_tokens: int
    image_tokens: int
    steps: int = 0


@dataclass(frozen=True)
class Begun:
    """Work on the request has begun."""


@dataclass(frozen=True)
class Step:
    """Evaluation `step` of `steps` of the images is done; sent only if the request asks for it."""

    step: int
    steps: int


@dataclass(frozen=True)
class Partial:
    """Previews of the final images, (h, w, 3) each, after evaluation `step`. index: 0 for the first Partial."""

    index: int
    step: int
    images: Sequence[Picture]


@dataclass(frozen=True)
class Logprob:
    """A token, its text as UTF-8 (which may be part of a character), and its natural log-probability."""

    id: int
    text: bytes
    logprob: float


@dataclass(frozen=True)
class Piece:
    """The next token of an answer, and the text that it completes. likeliest: the likeliest tokens, if requested."""

    text: str
    token: Logprob | None = None
    likeliest: Sequence[Logprob] = ()


@dataclass(frozen=True)
class Images:
    """The last event of an ImageRequest. seeds: None for images drawn without a seed; scores: 0 to 1, present with
    best_of."""

    images: Sequence[Picture]
    seeds: Sequence[int] | None
    scores: Sequence[float] | None
    usage: Usage


@dataclass(frozen=True)
class Answered:
    """The last event of a ChatRequest. text: the text held back until now. reason: "stop", or "length" if the room
    ran out."""

    text: str
    reason: str
    usage: Usage


@dataclass(frozen=True)
class Failure:
    """The request has failed, with the reason."""

    error: FlashJanusError


Event: TypeAlias = Accepted | Begun | Step | Partial | Piece | Images | Answered | Failure
LAST = Images | Answered | Failure
"""The events after which a request gets no more."""


@dataclass(frozen=True)
class Facts:
    """Facts about the served model. image_size: height and width of its pictures, None without a VAE;
    picture_tokens: tokens that a drawn picture takes; seen_tokens: tokens that an input picture takes; context: the
    most tokens of a conversation. adapters: where each adapter that requests may name was loaded from, by name."""

    name: str
    image_size: tuple[int, int] | None
    picture_tokens: int
    seen_tokens: int
    context: int
    dtype: str
    device: str
    quantization: str | None
    version: str
    adapters: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Stats:
    """Requests that wait, live rows and bytes of prefixes at one moment. All other figures count from the start.

    turns: the number of turns and their seconds, by kind of work ("evaluation", "tokens", "piece"). prefixes: hits and
    misses, by kind. restarts: how often the engine's process was restarted, if it has one.
    """

    queued: int = 0
    image_rows: int = 0
    answer_rows: int = 0
    turns: Mapping[str, tuple[int, float]] = field(default_factory=dict)
    tokens: int = 0
    images: int = 0
    prefixes: Mapping[str, tuple[int, int]] = field(default_factory=dict)
    prefix_bytes: int = 0
    evicted: int = 0
    restarts: int = 0


def unexpected(error: BaseException) -> FlashJanusError:
    """The error that a client gets for a fault of ours: it names the kind of the fault and nothing of the request."""
    told = DeviceError(f"the engine met a {type(error).__name__} while it served the request; send it again")
    told.__cause__ = error
    return told
