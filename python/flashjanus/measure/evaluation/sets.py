"""The fixed prompts and questions of the shapes world: scenes of unseen combinations, and what each caption promises.

Item k of a set depends only on the set's seed and on k, and the categories (topics) take turns; a shorter set is
therefore the beginning of a longer one.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass
from typing import Literal, get_args

import numpy as np

from flashjanus.measure.evaluation import language, world
from flashjanus.measure.evaluation.language import CAPTIONED, TOPICS, Question
from flashjanus.measure.evaluation.world import Kind, Scene, Split

Relation = Literal["left of", "right of", "above", "below"]

CATEGORIES: tuple[Kind, ...] = CAPTIONED
KINDS: tuple[Kind, ...] = get_args(Kind)
# Separates the sets' random streams where they share a seed.
_PROMPTS, _QUESTIONS, _CEILING, _JUDGE, _FLOOR = range(5)


@dataclass(frozen=True)
class Wanted:
    """One thing that a caption names; color is None if the caption names none."""

    shape: str
    color: str | None


@dataclass(frozen=True)
class Prompt:
    """A caption, the scene it was written for, and the part of the scene that it promises.

    place: where a single thing belongs. relation: where the first thing lies relative to the second. seed: for the
    picture's noise; successive prompts have successive seeds.
    """

    category: Kind
    text: str
    scene: Scene
    wanted: tuple[Wanted, ...]
    background: str
    place: str | None
    relation: Relation | None
    seed: int


@dataclass(frozen=True)
class Asked:
    """A question about a scene."""

    scene: Scene
    question: Question


def prompt_set(samples: int = 200, seed: int = 0, split: Split = "test") -> list[Prompt]:
    """`samples` prompts of each category, the categories taking turns."""
    return [_prompt(seed, k, split) for k in range(samples * len(CATEGORIES))]


def question_set(questions: int = 100, seed: int = 0) -> list[Asked]:
    """`questions` questions on each topic about scenes of all kinds, the topics taking turns."""
    return [_asked(seed, k) for k in range(questions * len(TOPICS))]


def ceiling_scenes(count: int) -> list[Scene]:
    """The scenes whose latents a model folder's evaluation.safetensors holds, the categories taking turns."""
    return _scenes(count, _CEILING, 0, CATEGORIES)


def judge_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes of all kinds, "mixed" included, for the judge's own accuracy."""
    return _scenes(count, _JUDGE, seed, KINDS)


def floor_scenes(count: int, seed: int = 0) -> list[Scene]:
    """Scenes with the same distribution as those of `prompt_set`, but drawn independently of them."""
    return _scenes(count, _FLOOR, seed, CATEGORIES)


def _scenes(count: int, stream: int, seed: int, kinds: tuple[Kind, ...]) -> list[Scene]:
    return [world.sample_scene(_rng(seed, stream, k), "test", kinds[k % len(kinds)]) for k in range(count)]


def _prompt(seed: int, k: int, split: Split) -> Prompt:
    rng = _rng(seed, _PROMPTS, k)
    scene = world.sample_scene(rng, split, CATEGORIES[k % len(CATEGORIES)])
    caption = language.caption(rng, scene)
    return Prompt(
        category=scene.kind,
        text=caption.text,
        scene=scene,
        wanted=tuple(Wanted(thing.shape, thing.color if caption.colored else None) for thing in scene.things),
        background=scene.background,  # always promised: a caption that names none means white
        place=scene.things[0].position if len(scene.things) == 1 else None,
        relation=_relation(scene) if scene.kind == "position" else None,
        seed=seed + k,
    )


def _relation(scene: Scene) -> Relation:
    """Where the first of two things in one row or one column lies relative to the second."""
    (row, column), (other_row, _) = (thing.position.split() for thing in scene.things)
    if row == other_row:
        return "left of" if column == "left" else "right of"
    return "above" if row == "top" else "below"


def _asked(seed: int, k: int) -> Asked:
    rng = _rng(seed, _QUESTIONS, k)
    topic = TOPICS[k % len(TOPICS)]
    # Some kinds never have a question on some topics: the next kind takes their turn.
    for turn in itertools.count(k // len(TOPICS)):
        scene = world.sample_scene(rng, "test", KINDS[turn % len(KINDS)])
        question = language.question(rng, scene, topic)
        if question is not None:
            return Asked(scene, question)
    raise AssertionError("unreachable: a count has no end")


def _rng(seed: int, stream: int, k: int) -> np.random.Generator:
    return np.random.default_rng((seed, stream, k))
