"""Makes the load: kinds and prompts drawn from a seed, for a closed loop or for Poisson arrival times."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from random import Random

from flashjanus.errors import InputError

from .contents import PICTURES, Prompts

KINDS = ("image", "chat", "vision")
"""An image from a prompt, an answer to a question, and an answer about a picture."""
MOST_CALLS = 100_000


@dataclass(frozen=True)
class Call:
    """A request to send `due` seconds after the start; None: as soon as a worker is free."""

    kind: str
    prompt: str
    picture: int | None = None
    """Number of the picture (see PICTURES) that is shown."""
    due: float | None = None


def read_mix(text: str) -> dict[str, float]:
    """Parse "image=0.3,chat=0.5" into shares by kind that sum to 1; a kind without a weight has weight 1. Raises
    InputError."""
    expected = f"--mix: expected KIND=WEIGHT[,KIND=WEIGHT] with kinds {', '.join(KINDS)}"
    weights: dict[str, float] = {}
    for part in text.split(","):
        kind, equals, weight = part.strip().partition("=")
        if kind not in KINDS or kind in weights:
            raise InputError(f"{expected}, each at most once, got {part.strip()!r:.40}")
        try:
            weights[kind] = float(weight) if equals else 1.0
        except ValueError:
            raise InputError(f"{expected}, got {part.strip()!r:.40}") from None
        if not 0 <= weights[kind] < math.inf:
            raise InputError(f"{expected} and weights of at least 0, got {part.strip()!r:.40}")
    total = sum(weights.values())
    if total <= 0:
        raise InputError(f"{expected}, of which one is above 0, got {text!r:.80}")
    return {kind: weight / total for kind, weight in weights.items() if weight}


def arrivals(rate: float, seed: int, *, seconds: float | None = None, count: int | None = None) -> list[float]:
    """Arrival times of a Poisson process of `rate` per second: those before `seconds`, at most `count`. Raises
    InputError if there would be more than MOST_CALLS, or if neither bound is given."""
    least = min(math.inf if seconds is None else rate * seconds, math.inf if count is None else count)
    if least > MOST_CALLS:
        raise InputError(f"expected at most {MOST_CALLS} requests in a run, got about {least:g}; shorten it")
    draw, at, found = Random(f"arrivals {seed}"), 0.0, list[float]()
    while len(found) < (MOST_CALLS if count is None else count):
        at += draw.expovariate(rate)
        if seconds is not None and at >= seconds:
            break
        found.append(at)
    return found


def calls(mix: Mapping[str, float], prompts: Prompts, seed: int, due: Sequence[float | None]) -> list[Call]:
    """One request per time. The same seed gives the same kinds, prompts and pictures whatever the times are. Raises
    InputError if there are more than MOST_CALLS."""
    if len(due) > MOST_CALLS:
        raise InputError(f"expected at most {MOST_CALLS} requests in a run, got {len(due)}")
    draw = Random(f"calls {seed}")
    made = []
    for at in due:
        [kind] = draw.choices([*mix], [*mix.values()])
        prompt, picture = draw.choice(prompts[kind]), draw.randrange(PICTURES)
        made.append(Call(kind, prompt, picture if kind == "vision" else None, at))
    return made
