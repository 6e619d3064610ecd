"""The fixed prompts and questions: unseen combinations, deterministic, and a shorter set begins a longer one."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter

import pytest
from flashjanus.measure.evaluation import world
from flashjanus.measure.evaluation.language import NUMBERS, TOPICS
from flashjanus.measure.evaluation.sets import (
    CATEGORIES,
    KINDS,
    ceiling_scenes,
    floor_scenes,
    judge_scenes,
    prompt_set,
    question_set,
)

PROMPTS = prompt_set(40)


def test_a_set_has_as_many_of_each_category_in_turn() -> None:
    assert [prompt.category for prompt in PROMPTS[:6]] == list(CATEGORIES)
    assert Counter(prompt.category for prompt in PROMPTS) == dict.fromkeys(CATEGORIES, 40)


def test_a_shorter_set_begins_a_longer_one_and_another_seed_gives_another() -> None:
    assert prompt_set(3) == PROMPTS[:18]
    assert question_set(2) == question_set(5)[:14]
    assert ceiling_scenes(9) == ceiling_scenes(30)[:9]
    assert prompt_set(3, seed=1) != PROMPTS[:18]


def test_seeds_follow_each_other() -> None:
    assert [prompt.seed for prompt in prompt_set(2, seed=5)] == list(range(5, 17))


def test_the_sets_are_drawn_independently() -> None:
    sets = [[p.scene for p in PROMPTS[:42]], ceiling_scenes(42), floor_scenes(42), judge_scenes(42)]
    for i, one in enumerate(sets):
        for other in sets[:i]:
            assert sum(a == b for a, b in zip(one, other, strict=True)) == 0


def test_every_scene_has_an_unseen_combination() -> None:
    scenes = [prompt.scene for prompt in PROMPTS] + [asked.scene for asked in question_set(20)]
    scenes += ceiling_scenes(60) + floor_scenes(60) + judge_scenes(70)
    for scene in scenes:
        assert any(world.SPLIT_OF[thing.combination] == "test" for thing in scene.things)


def test_what_is_wanted_is_what_the_caption_says() -> None:
    for prompt in PROMPTS:
        words = prompt.text.split()
        for wanted in prompt.wanted:
            assert any(word.rstrip("s") == wanted.shape for word in words)
            assert wanted.color is None or wanted.color in words
        if all(wanted.color is None for wanted in prompt.wanted):
            assert not set(world.COLORS) & set(words)
        if prompt.category == "counting":
            assert NUMBERS[len(prompt.wanted)] in words
        assert prompt.background in (words if "background" in words else ["white"])
        assert (prompt.place is not None) == (len(prompt.wanted) == 1)
        assert prompt.place in (None, "center") or f"in the {prompt.place}" in prompt.text
        assert (prompt.relation is not None) == (prompt.category == "position")
        if prompt.relation is not None:
            assert any(word in prompt.text for word in (prompt.relation, {"below": "under"}.get(prompt.relation, "no")))


def test_questions_cover_topics_and_kinds() -> None:
    asked = question_set(70)
    assert Counter(one.question.topic for one in asked) == dict.fromkeys(TOPICS, 70)
    assert {one.scene.kind for one in asked} == set(KINDS)


@pytest.mark.parametrize("module", ["world", "language", "judge", "sets", "verdict"])
def test_the_world_needs_no_torch(module: str) -> None:
    code = f"import sys, flashjanus.measure.evaluation.{module}; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
