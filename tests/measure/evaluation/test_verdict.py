"""Judge and verdict: ground truth is always right, and every kind of fault is caught and named."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from flashjanus.measure.evaluation import judge, world
from flashjanus.measure.evaluation.judge import Seen, Sight
from flashjanus.measure.evaluation.sets import Prompt, Wanted, judge_scenes, prompt_set
from flashjanus.measure.evaluation.verdict import Verdict, give_verdict, judge_sight
from flashjanus.measure.evaluation.world import Scene, Thing

LEFT = Thing("circle", "red", "top left", 16, 16, world.RADIUS)
RIGHT = Thing("square", "blue", "top right", 48, 16, world.RADIUS)
PAIR = Scene("position", "white", (LEFT, RIGHT))
BESIDE = Prompt(
    category="position",
    text="a red circle to the left of a blue square",
    scene=PAIR,
    wanted=(Wanted("circle", "red"), Wanted("square", "blue")),
    background="white",
    place=None,
    relation="left of",
    seed=0,
)
ALONE = Prompt(
    category="colors",
    text="a red circle in the top left",
    scene=Scene("colors", "white", (LEFT,)),
    wanted=(Wanted("circle", "red"),),
    background="white",
    place="top left",
    relation=None,
    seed=0,
)


def verdict_on(prompt: Prompt, *things: Thing, background: str = "white") -> Verdict:
    return give_verdict(prompt, world.render(Scene("mixed", background, things)))


def moved(thing: Thing, x: float, y: float) -> Thing:
    return replace(thing, x=x, y=y)


def test_the_judge_knows_ground_truth() -> None:
    scenes = judge_scenes(210)
    assert all(judge.matches(scene, judge.look(world.render(scene))) for scene in scenes)


def test_ground_truth_fulfils_its_prompt() -> None:
    for prompt in prompt_set(25):
        verdict = give_verdict(prompt, world.render(prompt.scene))
        assert verdict.correct, f"{prompt.text}: {verdict}"
        assert str(verdict) == "right"


def test_a_picture_of_another_prompt_is_wrong() -> None:
    """Another scene is right only where it happens to fulfill all that the prompt names."""
    prompts = prompt_set(25)
    right = sum(
        give_verdict(prompt, world.render(other.scene)).correct
        for prompt, other in zip(prompts, prompts[6:] + prompts[:6], strict=True)
    )
    assert right < len(prompts) / 10


@pytest.mark.parametrize(
    ("things", "background", "words"),
    [
        ((LEFT, RIGHT), "gray", "the background is gray, not white"),
        ((LEFT,), "white", "1 thing instead of 2"),
        ((), "white", "no things instead of 2"),
        ((LEFT, RIGHT, moved(LEFT, 16, 48)), "white", "3 things instead of 2"),
        ((LEFT, replace(RIGHT, shape="triangle")), "white", "a triangle instead of a square"),
        ((LEFT, replace(RIGHT, color="green")), "white", "the square is green, not blue"),
        (
            (replace(LEFT, color="blue"), replace(RIGHT, color="red")),
            "white",
            "the circle is blue, not red; the square is red, not blue",
        ),
        ((moved(LEFT, 48, 16), moved(RIGHT, 16, 16)), "white", "the circle is right of the square, not left of it"),
        ((LEFT, moved(RIGHT, 16, 48)), "white", "the circle is above the square, not left of it"),
        (
            (LEFT, moved(RIGHT, 46, 48)),
            "white",
            "the circle is above and left of the square, not left of it",
        ),
    ],
)
def test_each_fault_of_a_pair_is_named(things: tuple[Thing, ...], background: str, words: str) -> None:
    verdict = verdict_on(BESIDE, *things, background=background)
    assert not verdict.correct
    assert str(verdict) == words


def test_faults_carry_their_kind() -> None:
    verdict = verdict_on(BESIDE, replace(LEFT, color="cyan"), moved(RIGHT, 16, 48), background="black")
    assert [fault.kind for fault in verdict.faults] == ["background", "color", "relation"]
    assert [fault.kind for fault in verdict_on(BESIDE).faults] == ["count"]
    assert [fault.kind for fault in verdict_on(ALONE, moved(LEFT, 48, 48)).faults] == ["place"]
    assert [fault.kind for fault in verdict_on(ALONE, replace(LEFT, shape="square")).faults] == ["shape"]


def test_two_things_in_the_wanted_order_are_right_wherever_they_lie() -> None:
    assert verdict_on(BESIDE, moved(LEFT, 16, 40), moved(RIGHT, 48, 30)).correct


@pytest.mark.parametrize(("x", "correct"), [(16.0, True), (23.0, True), (26.0, False), (32.0, False)])
def test_a_single_thing_must_lie_in_its_place(x: float, correct: bool) -> None:
    verdict = verdict_on(ALONE, moved(LEFT, x, 16))
    assert verdict.correct == correct
    assert correct or "px away from the top left" in str(verdict)


@pytest.mark.parametrize(
    ("x", "y", "correct"), [(24, 8, True), (24.01, 16, False), (16, 24.01, False), (7.99, 16, False), (8, 16, True)]
)
def test_a_place_is_within_eight_pixels_of_16_and_16(x: float, y: float, correct: bool) -> None:
    assert judge_sight(ALONE, Sight("white", (Seen("circle", "red", x, y, 1.0),))).correct == correct


@pytest.mark.parametrize(
    ("dx", "dy", "where"),
    [
        (8, 0, None),
        (8, 7.99, None),
        (8, 8, "above and left of"),
        (7.99, 0, "at the place of"),
        (7.99, 20, "above"),
        (20, -20, "below and left of"),
        (20, 19.9, None),
        (-8, 0, "right of"),
    ],
)
def test_beside_is_by_eight_pixels_and_more_than_across(dx: float, dy: float, where: str | None) -> None:
    things = Seen("circle", "red", 30, 30, 1.0), Seen("square", "blue", 30 + dx, 30 + dy, 1.0)
    due = "right" if where is None else f"the circle is {where} the square, not left of it"
    assert str(judge_sight(BESIDE, Sight("white", things))) == due


@pytest.mark.parametrize(("pixels", "things"), [(23, 0), (24, 1)])
def test_a_thing_has_at_least_24_pixels(pixels: int, things: int) -> None:
    image = np.full((64, 64, 3), 255, dtype=np.uint8)
    rows, columns = np.divmod(np.arange(pixels), 3)
    image[20 + rows, 20 + columns] = world.COLORS["blue"]
    assert len(judge.look(image).things) == things


@pytest.mark.parametrize(("height", "shape"), [(20, "square"), (15, "square"), (14, None)])
def test_a_shape_overlaps_its_drawing_by_three_quarters(height: int, shape: str | None) -> None:
    """The square of a side between width and height: 0.76 at 20 x 15, 0.72 at 20 x 14."""
    image = np.full((64, 64, 3), 255, dtype=np.uint8)
    image[20 : 20 + height, 20:40] = world.COLORS["blue"]
    (thing,) = judge.look(image).things
    assert thing.shape == shape


@pytest.mark.parametrize(("off", "background"), [(90, "white"), (91, None)])
def test_a_palette_color_is_at_most_90_away(off: int, background: str | None) -> None:
    image = np.full((64, 64, 3), world.BACKGROUNDS["white"], dtype=np.uint8)
    image[..., 0] -= np.uint8(off)
    assert judge.look(image).background == background


@pytest.mark.parametrize(("off", "things"), [(64, 0), (65, 1)])
def test_a_pixel_is_of_a_thing_when_a_channel_is_more_than_64_off(off: int, things: int) -> None:
    image = np.full((64, 64, 3), world.BACKGROUNDS["white"], dtype=np.uint8)
    image[20:40, 20:40, 1] -= np.uint8(off)
    assert len(judge.look(image).things) == things


@pytest.mark.parametrize(("x", "same"), [(22.0, True), (22.01, False), (9.99, False)])
def test_a_scene_is_matched_within_six_pixels(x: float, same: bool) -> None:
    assert judge.matches(ALONE.scene, Sight("white", (Seen("circle", "red", x, 16, 1.0),))) == same


def test_a_color_that_is_not_named_may_be_any() -> None:
    free = replace(ALONE, wanted=(Wanted("circle", None),))
    assert verdict_on(free, replace(LEFT, color="green")).correct
    assert not verdict_on(free, replace(LEFT, shape="square")).correct


def test_one_thing_of_a_wrong_color_among_equal_ones_is_found() -> None:
    things = (LEFT, moved(LEFT, 48, 16), moved(LEFT, 16, 48))
    counted = replace(ALONE, wanted=(Wanted("circle", "red"),) * 3, place=None)
    assert verdict_on(counted, *things).correct
    assert str(verdict_on(counted, replace(LEFT, color="blue"), *things[1:])) == "the circle is blue, not red"
    assert str(verdict_on(counted, *things[:2])) == "2 things instead of 3"


def test_what_is_no_shape_or_no_color_is_said_so() -> None:
    image = world.render(ALONE.scene)
    image[20:] = np.where(image[20:] == world.BACKGROUNDS["white"], image[20:], world.BACKGROUNDS["white"])
    assert str(give_verdict(ALONE, image)) == "a thing of no clear shape instead of a circle"
    brown = np.full_like(image, (140, 80, 20))
    assert str(give_verdict(ALONE, brown)) == "the background is of no known color, not white"


def test_specks_do_not_count_and_noise_is_wrong() -> None:
    image = world.render(ALONE.scene)
    image[50:53, 50:53] = world.COLORS["blue"]
    assert give_verdict(ALONE, image).correct
    noise = np.random.default_rng(0).integers(0, 256, image.shape, dtype=np.uint8)
    assert not give_verdict(ALONE, noise).correct
