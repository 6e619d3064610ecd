"""What is asked of a served model, and what it tells: plain data, which goes to another process as it is."""

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
    """Images of one prompt. options: of `JanusFlow.generate_image`, those that JSON can hold.

    previews: at most so many partial images, evenly spread over the steps, by the linear map or, with full_previews, by
    the VAE. steps: whether each evaluation is told, as a Step; each wakes whoever listens, beside the engine's threads.
    priority: the smaller, the earlier. deadline: seconds from now.
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
    """The answer to a conversation. messages, options: of `JanusFlow.chat`; images are encoded bytes, PIL images or
    arrays (H, W, 3), uint8.

    logprobs: with each token its log-probability, and those of so many of the likeliest, 0 to 20; None: neither.
    """

    messages: Sequence[Mapping[str, Any]]
    options: Mapping[str, Any] = field(default_factory=dict)
    logprobs: int | None = None
    priority: int = 0
    deadline: float | None = None


Request: TypeAlias = ImageRequest | ChatRequest


@dataclass(frozen=True)
class Usage:
    """Tokens of a request: of its prompt, of which image_tokens stand for images, and of what was made. cached_tokens:
    of the prompt, those that were not computed, since an earlier request had begun the same way."""

    prompt_tokens: int
    image_tokens: int
    completion_tokens: int
    cached_tokens: int = 0


@dataclass(frozen=True)
class Accepted:
    """The request is valid, and waits for its turn. steps: evaluations of each of its images, 0 for an answer."""

    prompt_tokens: int
    image_tokens: int
    steps: int = 0


@dataclass(frozen=True)
class Begun:
    """Work on the request has begun."""


@dataclass(frozen=True)
class Step:
    """Evaluation `step` of `steps` of its images is done; told where the request asks for it."""

    step: int
    steps: int


@dataclass(frozen=True)
class Partial:
    """Where the images are heading after evaluation `step`, (h, w, 3) each. index: 0 for the first."""

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
    """The next token of an answer, and the text that it completes. likeliest: where they were asked for."""

    text: str
    token: Logprob | None = None
    likeliest: Sequence[Logprob] = ()


@dataclass(frozen=True)
class Images:
    """The last event of an ImageRequest. seeds: None where there are none; scores: with best_of, 0 to 1."""

    images: Sequence[Picture]
    seeds: Sequence[int] | None
    scores: Sequence[float] | None
    usage: Usage


@dataclass(frozen=True)
class Answered:
    """The last event of a ChatRequest. text: what was held back. reason: "stop", or "length" where room ended."""

    text: str
    reason: str
    usage: Usage


@dataclass(frozen=True)
class Failure:
    """The request gives no result, and why."""

    error: FlashJanusError


Event: TypeAlias = Accepted | Begun | Step | Partial | Piece | Images | Answered | Failure
LAST = Images | Answered | Failure
"""After which nothing more is told of a request."""


@dataclass(frozen=True)
class Facts:
    """What is served. image_size: height and width of its pictures, None where it has no VAE; picture_tokens: tokens
    that a picture drawn takes, seen_tokens: that a picture shown takes; context: most tokens of a conversation."""

    name: str
    image_size: tuple[int, int] | None
    picture_tokens: int
    seen_tokens: int
    context: int
    dtype: str
    device: str
    quantization: str | None
    version: str


@dataclass(frozen=True)
class Stats:
    """Of a moment: requests that wait, live rows, bytes of prefixes. All else counts from the start.

    turns: by kind of work ("evaluation", "tokens", "piece") how many there were and their seconds.
    prefixes: by kind hits and misses. restarts: of the engine's process, where it has one.
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
    """What a client is told of a fault of ours: its kind, and nothing of what it was about."""
    told = DeviceError(f"expected the request to be served, but the engine met a {type(error).__name__}; send it again")
    told.__cause__ = error
    return told
