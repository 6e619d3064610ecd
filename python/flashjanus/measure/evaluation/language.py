"""Captions and questions about scenes of the shapes world, in varied wording, with their answers."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np

from flashjanus.measure.evaluation.world import COLORS, SHAPES, Kind, Scene, Thing

Topic = Literal["color", "shape", "count", "position", "yes_no", "relation", "background"]

TOPICS: tuple[Topic, ...] = ("color", "shape", "count", "position", "yes_no", "relation", "background")
CAPTIONED: tuple[Kind, ...] = (
    "single_object",
    "two_objects",
    "counting",
    "colors",
    "position",
    "color_attribution",
)
NUMBERS = ("zero", "one", "two", "three", "four")
_OPENINGS = ("a picture of ", "a photo of ", "an image of ")


@dataclass(frozen=True)
class Caption:
    """A caption's words, and what they promise: whether they name the colors and the background."""

    text: str
    colored: bool
    background: bool


@dataclass(frozen=True)
class Question:
    topic: Topic
    text: str
    answer: str


def caption(rng: np.random.Generator, scene: Scene) -> Caption:
    """A caption of `scene` (not of kind "mixed"). If it names no background, the background is white."""
    if scene.kind == "mixed":
        raise ValueError('expected a scene of a captioned kind, got "mixed"; its things have no caption')
    first = scene.things[0]
    colored = {"single_object": False, "two_objects": False}.get(scene.kind, True)
    if scene.kind in ("counting", "position"):
        colored = bool(rng.random() < 0.6)
    if scene.kind in ("single_object", "colors"):
        text = _noun(first, colored, _one(rng))
        if first.position != "center" or rng.random() < 0.3:
            text += f" in the {first.position}"
    elif scene.kind == "counting":
        text = f"{NUMBERS[len(scene.things)]} {_noun(first, colored)}s"
    else:
        second = scene.things[1]
        between = f" {relation(rng, first, second)} " if scene.kind == "position" else " and "
        text = _noun(first, colored, _one(rng)) + between + _noun(second, colored, _one(rng))
    named = scene.background != "white" or bool(rng.random() < 0.2)
    if named:
        text += f" on a {scene.background} background"
    if rng.random() < 0.4:
        text = _OPENINGS[rng.integers(len(_OPENINGS))] + text
    return Caption(text, colored, named)


def relation(rng: np.random.Generator, first: Thing, second: Thing) -> str:
    """Where `first` lies relative to `second`: "to the left of", "above", ... for things in one row or one column."""
    if first.position.split()[0] == second.position.split()[0]:
        side = first.position.split()[1]
        return f"to the {side} of" if rng.random() < 0.7 else f"{side} of"
    above = first.position.startswith("top")
    return "above" if above else ("below" if rng.random() < 0.7 else "under")


def question(rng: np.random.Generator, scene: Scene, topic: Topic) -> Question | None:
    """A question on `topic` that has exactly one answer in `scene`; None if there is none."""
    things = scene.things
    if topic == "background":
        return Question(topic, f"What {_color_word(rng)} is the background?", scene.background)
    if topic == "count":
        if rng.random() < 0.4:
            return Question(topic, f"How many {_any(rng, ('shapes', 'objects'))} are there?", NUMBERS[len(things)])
        shape = _any(rng, SHAPES)
        count = sum(thing.shape == shape for thing in things)
        return Question(topic, f"How many {shape}s are there?", NUMBERS[count])
    if topic == "yes_no":
        return _yes_no(rng, scene)
    if topic == "relation":
        return _relation(rng, scene)
    unique = [thing for thing in things if _is_unique(thing, things, topic)]
    if not unique:
        return None
    thing = unique[rng.integers(len(unique))]
    if topic == "color":
        return Question(topic, f"What {_color_word(rng)} is the {thing.shape}?", thing.color)
    if topic == "shape":
        if rng.random() < 0.5:
            return Question(topic, f"What shape is {thing.color}?", thing.shape)
        return Question(topic, f"What shape is the {thing.color} object?", thing.shape)
    return Question(topic, f"Where is the {thing.color} {thing.shape}?", thing.position)


def _yes_no(rng: np.random.Generator, scene: Scene) -> Question:
    looks = {(thing.color, thing.shape) for thing in scene.things}
    color, shape = sorted(looks)[rng.integers(len(looks))]
    wanted = rng.random() < 0.5
    while not wanted and (color, shape) in looks:  # near misses: one of the two is wrong
        if rng.random() < 0.5:
            color = _any(rng, tuple(COLORS))
        else:
            shape = _any(rng, SHAPES)
    return Question("yes_no", f"Is there a {color} {shape}?", "yes" if wanted else "no")


def _relation(rng: np.random.Generator, scene: Scene) -> Question | None:
    """Ask which of two things of different shapes lies further to one side."""
    pairs = [
        (a, b)
        for a in scene.things
        for b in scene.things
        if a.shape != b.shape and all(_is_unique(thing, scene.things, "color") for thing in (a, b))
    ]
    if not pairs:
        return None
    first, second = pairs[rng.integers(len(pairs))]
    sides = []
    if _side(first, 1) != _side(second, 1):
        sides += [("on the left", _side(first, 1) == "left"), ("on the right", _side(first, 1) == "right")]
    if _side(first, 0) != _side(second, 0):
        sides += [("at the top", _side(first, 0) == "top"), ("at the bottom", _side(first, 0) == "bottom")]
    words, is_first = sides[rng.integers(len(sides))]
    answer = first.shape if is_first else second.shape
    return Question("relation", f"Which is {words}, the {first.shape} or the {second.shape}?", answer)


def _side(thing: Thing, index: int) -> str:
    return thing.position.split()[index]


def _is_unique(thing: Thing, things: Sequence[Thing], topic: Topic) -> bool:
    """Whether the question's description fits `thing` only."""
    if topic == "color":
        return sum(other.shape == thing.shape for other in things) == 1
    if topic == "shape":
        return sum(other.color == thing.color for other in things) == 1
    return sum((other.color, other.shape) == (thing.color, thing.shape) for other in things) == 1


def _noun(thing: Thing, colored: bool, article: str = "") -> str:
    words = (article, thing.color if colored else "", thing.shape)
    return " ".join(word for word in words if word)


def _one(rng: np.random.Generator) -> str:
    return "a" if rng.random() < 0.8 else "one"


def _color_word(rng: np.random.Generator) -> str:
    return _any(rng, ("color", "colour"))


def _any(rng: np.random.Generator, words: Sequence[str]) -> str:
    return words[int(rng.integers(len(words)))]
