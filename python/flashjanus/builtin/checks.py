"""What a picture of a prompt must show, as questions of the kind that the built-in model was trained to answer."""

from __future__ import annotations

import re
from collections import Counter

Check = tuple[str, str, tuple[str, ...]]
"""A question, its answer, and the other answers that it may get."""

_SHAPES = ("circle", "square", "triangle")
_COLORS = ("red", "green", "blue", "yellow", "purple", "cyan")
_BACKGROUNDS = ("white", "gray", "black")
_NUMBERS = ("zero", "one", "two", "three", "four")
_SIDES = {"left": "on the left", "right": "on the right", "above": "at the top", "below": "at the bottom"}
_LOOK = f"(?:({'|'.join(_COLORS)}) )?({'|'.join(_SHAPES)})"
_CAPTION = re.compile(
    r"(?:an? (?:picture|photo|image) of )?"
    rf"(?:(?P<number>{'|'.join(_NUMBERS[2:])}) {_LOOK}s"
    rf"|(?:a|one) {_LOOK}(?: in the [a-z ]+?)?"
    rf"|(?:a|one) {_LOOK} (?:and|(?:to the )?(?P<side>left|right) of|(?P<row>above|below|under)) (?:a|one) {_LOOK})"
    rf"(?: on a (?P<background>{'|'.join(_BACKGROUNDS)}) background)?"
)


def checks(prompt: str) -> list[Check]:
    """Questions on all that a caption of the shapes world promises but single places; for other words "Is there ...?".

    A background that is not named is white.
    """
    found = _CAPTION.fullmatch(" ".join(prompt.lower().split()))
    if found is None:
        return [_one_of(f"Is there {prompt.strip()}?", "yes", ("yes", "no"))]
    looks = _looks(found)
    number = _NUMBERS.index(found["number"] or _NUMBERS[len(looks)])
    asked = [
        _one_of("What color is the background?", found["background"] or "white", _BACKGROUNDS),
        _one_of("How many shapes are there?", _NUMBERS[number], _NUMBERS),
    ]
    counts = Counter(shape for _, shape in looks)
    for color, shape in dict.fromkeys(looks):
        count = number if len(looks) == 1 else counts[shape]
        asked.append(_one_of(f"How many {shape}s are there?", _NUMBERS[count], _NUMBERS))
        if color:
            asked.append(_one_of(f"Is there a {color} {shape}?", "yes", ("yes", "no")))
    side = {"under": "below"}.get(found["row"], found["side"] or found["row"])
    if side:
        (_, first), (_, second) = looks
        asked.append(_one_of(f"Which is {_SIDES[side]}, the {first} or the {second}?", first, (first, second)))
    return asked


def _looks(found: re.Match[str]) -> list[tuple[str | None, str]]:
    """Color and shape of every thing that the caption names."""
    named = set(_CAPTION.groupindex.values())
    words = [found[i] for i in range(1, _CAPTION.groups + 1) if i not in named]
    return [(color, shape) for color, shape in zip(words[::2], words[1::2], strict=True) if shape]


def _one_of(question: str, answer: str, answers: tuple[str, ...]) -> Check:
    return question, answer, tuple(other for other in answers if other != answer)
