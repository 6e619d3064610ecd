"""Judges strictly whether a picture shows what its prompt asks for, and says in words what is wrong."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from flashjanus.measure.evaluation import judge, world
from flashjanus.measure.evaluation.judge import Seen, Sight
from flashjanus.measure.evaluation.sets import Prompt, Relation, Wanted

FaultKind = Literal["background", "count", "shape", "color", "place", "relation"]

TOLERANCE = 8.0
"""Pixels: the largest distance of a thing from its place, and the least distance to the named side."""
# Axis (0 = x, 1 = y) and sign of the first thing's center minus the second's.
_SIDES: dict[Relation, tuple[int, int]] = {"left of": (0, -1), "right of": (0, 1), "above": (1, -1), "below": (1, 1)}


@dataclass(frozen=True)
class Fault:
    """One thing that is wrong, for example Fault("color", "the square is blue, not red")."""

    kind: FaultKind
    words: str


@dataclass(frozen=True)
class Verdict:
    """The faults of a picture; it is right if there are none."""

    faults: tuple[Fault, ...]

    @property
    def correct(self) -> bool:
        return not self.faults

    def __str__(self) -> str:
        return "; ".join(fault.words for fault in self.faults) or "right"


def give_verdict(prompt: Prompt, image: npt.NDArray[np.uint8]) -> Verdict:
    """The verdict on a picture (SIZE, SIZE, 3) drawn for `prompt`."""
    return judge_sight(prompt, judge.look(image))


def judge_sight(prompt: Prompt, sight: Sight) -> Verdict:
    """The verdict on what was seen in a picture.

    A picture is right if it has exactly as many things as named, of the named shapes, each in its named color, on the
    named background (white if none is named), and a single thing is within TOLERANCE of its place. For two things with
    a relation, the centers must differ by at least TOLERANCE along its axis, and by more than along the other axis.
    """
    faults = []
    if sight.background != prompt.background:
        seen = "of no known color" if sight.background is None else sight.background
        faults.append(Fault("background", f"the background is {seen}, not {prompt.background}"))
    if sight.background is None:  # nothing else was looked for
        return Verdict(tuple(faults))
    if len(sight.things) != len(prompt.wanted):
        faults.append(Fault("count", f"{_things(len(sight.things))} instead of {len(prompt.wanted)}"))
        return Verdict(tuple(faults))
    pairs = _pair(prompt.wanted, sight.things)
    for wanted, seen_thing in pairs:
        if seen_thing.shape != wanted.shape:
            faults.append(Fault("shape", f"{_a(seen_thing.shape)} instead of {_a(wanted.shape)}"))
        elif wanted.color not in (None, seen_thing.color):
            color = seen_thing.color or "of no known color"
            faults.append(Fault("color", f"the {wanted.shape} is {color}, not {wanted.color}"))
    if not any(fault.kind == "shape" for fault in faults):
        faults += _misplaced(prompt, [seen_thing for _, seen_thing in pairs])
    return Verdict(tuple(faults))


def _pair(wanted: tuple[Wanted, ...], seen: tuple[Seen, ...]) -> list[tuple[Wanted, Seen]]:
    """Pair each wanted thing, in order, with a seen one: of its shape and color, else of its shape, else any."""
    left = list(seen)
    found: dict[int, Seen] = {}
    tests = (
        lambda want, thing: (thing.shape, thing.color) == (want.shape, want.color),
        lambda want, thing: thing.shape == want.shape,
        lambda want, thing: True,
    )
    for fits in tests:
        for i, want in enumerate(wanted):
            match = None if i in found else next((thing for thing in left if fits(want, thing)), None)
            if match is not None:
                found[i] = match
                left.remove(match)
    return [(want, found[i]) for i, want in enumerate(wanted)]


def _misplaced(prompt: Prompt, things: list[Seen]) -> list[Fault]:
    if prompt.place is not None:
        x, y = world.POSITIONS[prompt.place]
        away = max(abs(things[0].x - x), abs(things[0].y - y))
        if away > TOLERANCE:
            words = f"the {things[0].shape} is {away:.0f} px away from the {prompt.place}"
            return [Fault("place", words)]
    if prompt.relation is not None:
        first, second = things
        axis, sign = _SIDES[prompt.relation]
        offset = (first.x - second.x, first.y - second.y)
        along, across = sign * offset[axis], abs(offset[1 - axis])
        if along < TOLERANCE or along <= across:
            words = f"the {first.shape} is {_where(offset)} the {second.shape}, not {prompt.relation} it"
            return [Fault("relation", words)]
    return []


def _where(offset: tuple[float, float]) -> str:
    dx, dy = offset
    if max(abs(dx), abs(dy)) < TOLERANCE:
        return "at the place of"
    level = "left of" if dx < 0 else "right of"
    upright = "above" if dy < 0 else "below"
    if min(abs(dx), abs(dy)) >= TOLERANCE:
        return f"{upright} and {level}"
    return level if abs(dx) > abs(dy) else upright


def _things(count: int) -> str:
    return "1 thing" if count == 1 else f"{count or 'no'} things"


def _a(shape: str | None) -> str:
    return "a thing of no clear shape" if shape is None else f"a {shape}"
