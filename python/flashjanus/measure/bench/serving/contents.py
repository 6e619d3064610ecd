"""The prompts that requests send: the lines of a file, or built-in ones."""

from __future__ import annotations

import base64
import colorsys
import io
from collections.abc import Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import TypeAlias

from PIL import Image, ImageDraw

from flashjanus.disk.reading import parse_object, read_lines
from flashjanus.errors import InputError

Prompts: TypeAlias = Mapping[str, Sequence[str]]
"""Prompts by kind, at least one of each."""
PICTURES, SIDE = 16, 384
"""How many built-in pictures there are (enough that an endpoint does not see the same one twice in a row), and their
side in pixels."""
COLORS = ("red", "green", "blue", "yellow", "purple")
SHAPES = ("circle", "square", "triangle")
BUILT_IN: Prompts = {
    "image": [
        f"a {one} {shape} to the left of a {other} one" for one in COLORS for other in COLORS for shape in SHAPES
    ],
    "chat": [f"Describe a {color} {shape} in a few words." for color in COLORS for shape in SHAPES],
    "vision": ["What is in this picture?", *(f"Is there a {color} shape?" for color in COLORS)],
}


def read_prompts(path: Path | None, kinds: Sequence[str]) -> Prompts:
    """Prompts of `kinds`. Each line of the file is a prompt for all kinds or, as {"kind": ..., "prompt": ...}, for one.
    Raises InputError, also if a kind has no prompt."""
    if path is None:
        return BUILT_IN
    found: dict[str, list[str]] = {kind: [] for kind in BUILT_IN}
    for where, line in read_lines(path):
        for kind, prompt in _prompts(line.strip(), where):
            found[kind].append(prompt)
    for kind in kinds:
        if not found[kind]:
            raise InputError(f"{path}: expected at least one prompt of kind {kind}, which --mix asks for")
    return found


def _prompts(line: str, where: str) -> list[tuple[str, str]]:
    if not line.startswith("{"):
        return [(kind, line) for kind in BUILT_IN]
    given = parse_object(line, where)
    kind, prompt = given.get("kind"), given.get("prompt")
    known = kind is None or (isinstance(kind, str) and kind in BUILT_IN)
    if not known or not isinstance(prompt, str) or not prompt.strip() or given.keys() - {"kind", "prompt"}:
        expected = f'text, or {{"kind": KIND, "prompt": TEXT}} with kinds {", ".join(BUILT_IN)}'
        raise InputError(f"{where}: expected {expected}, got {line!r:.80}")
    return [(one, prompt) for one in ([*BUILT_IN] if kind is None else [kind])]


@cache
def picture(number: int) -> str:
    """One of PICTURES, as the data: URL of a PNG."""
    color = tuple(round(255 * part) for part in colorsys.hsv_to_rgb(number / PICTURES, 0.8, 0.9))
    image = Image.new("RGB", (SIDE, SIDE), "white")
    at = SIDE * (number % 4 + 1) // 6
    ImageDraw.Draw(image).ellipse((at, at, at + SIDE // 3, at + SIDE // 3), fill=color)
    file = io.BytesIO()
    image.save(file, "png")
    return f"data:image/png;base64,{base64.b64encode(file.getvalue()).decode()}"
