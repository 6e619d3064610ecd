"""The world of the built-in model: 64 x 64 pictures of colored shapes, what is true of them, and how they are drawn.

A scene is one shape in the center, or one to four shapes in the four quarters of the picture, on a plain background.
Everything is determined by a seed. Combinations of color, shape and position are split: those of "validation" and
"test" never appear in a scene of "train".
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import product
from typing import Literal

import numpy as np
import numpy.typing as npt

Split = Literal["train", "validation", "test"]
Kind = Literal["single_object", "two_objects", "counting", "colors", "position", "color_attribution", "mixed"]

SIZE = 64
SHAPES = ("circle", "square", "triangle")
COLORS = {
    "red": (225, 25, 30),
    "green": (20, 165, 50),
    "blue": (35, 60, 230),
    "yellow": (250, 215, 20),
    "purple": (165, 30, 200),
    "cyan": (40, 205, 225),
}
BACKGROUNDS = {"white": (245, 245, 245), "gray": (128, 128, 128), "black": (12, 12, 12)}
POSITIONS = {
    "top left": (16, 16),
    "top right": (48, 16),
    "bottom left": (16, 48),
    "bottom right": (48, 48),
    "center": (32, 32),
}
QUARTERS = ("top left", "top right", "bottom left", "bottom right")
RADIUS, CENTER_RADIUS = 12.0, 15.0
JITTER = 2.0

# Distances of a shape's outline from its center at radius 1: outward normals and offsets of its edges.
_TRIANGLE = ((0.0, 1.0, 0.8), (0.874157, -0.485643, 0.485643), (-0.874157, -0.485643, 0.485643))
_SQUARE = ((0.0, 1.0, 0.88), (0.0, -1.0, 0.88), (1.0, 0.0, 0.88), (-1.0, 0.0, 0.88))
_EDGES = {"square": _SQUARE, "triangle": _TRIANGLE}

Combination = tuple[str, str, str]


@dataclass(frozen=True)
class Thing:
    """One shape: its center (x, y) and radius in pixels, and the name of its place."""

    shape: str
    color: str
    position: str
    x: float
    y: float
    radius: float

    @property
    def combination(self) -> Combination:
        return self.color, self.shape, self.position


@dataclass(frozen=True)
class Scene:
    """A picture's contents. `kind` says which sort of caption fits."""

    kind: Kind
    background: str
    things: tuple[Thing, ...]


def _splits() -> dict[Combination, Split]:
    """Every other (color, shape) misses one of its five positions in training; a few more miss one for validation."""
    splits: dict[Combination, Split] = dict.fromkeys(product(COLORS, SHAPES, POSITIONS), "train")
    positions = tuple(POSITIONS)
    for (i, color), (j, shape) in product(enumerate(COLORS), enumerate(SHAPES)):
        position = positions[(i + 2 * j) % len(positions)]
        if (i + j) % 2 == 0:
            splits[color, shape, position] = "test"
        elif (i + j) % 4 == 1:
            splits[color, shape, position] = "validation"
    return splits


SPLIT_OF = _splits()


def sample_scene(rng: np.random.Generator, split: Split, kind: Kind) -> Scene:
    """A scene of `kind`. With split "train" all its things are of that split, otherwise at least one is of `split`."""
    while True:
        scene = _draw_scene(rng, kind)
        splits = {SPLIT_OF[thing.combination] for thing in scene.things}
        if splits == {"train"} if split == "train" else split in splits:
            return scene


def _draw_scene(rng: np.random.Generator, kind: Kind) -> Scene:
    background = str(rng.choice(("white", "gray", "black"), p=(0.5, 0.25, 0.25)))
    if kind in ("single_object", "colors"):
        positions = [str(rng.choice(("center", *QUARTERS), p=(0.4, 0.15, 0.15, 0.15, 0.15)))]
        looks = [(_pick(rng, SHAPES), _pick(rng, COLORS))]
    elif kind == "counting":
        positions = _some(rng, QUARTERS, int(rng.integers(2, 5)))
        looks = [(_pick(rng, SHAPES), _pick(rng, COLORS))] * len(positions)
    elif kind == "mixed":
        positions = _some(rng, QUARTERS, int(rng.integers(1, 5)))
        looks = [(_pick(rng, SHAPES), _pick(rng, COLORS)) for _ in positions]
    else:
        first, second = _some(rng, QUARTERS, 2)
        if kind == "position":  # neighbors: the same row or the same column
            lines = (QUARTERS[:2], QUARTERS[2:], QUARTERS[::2], QUARTERS[1::2])
            first, second = _some(rng, lines[rng.integers(4)], 2)
        positions = [first, second]
        shapes = _some(rng, SHAPES, 2)
        distinct = kind == "color_attribution"
        colors = _some(rng, tuple(COLORS), 2) if distinct else [_pick(rng, COLORS) for _ in range(2)]
        looks = list(zip(shapes, colors, strict=True))
    things = [_thing(rng, shape, color, at) for (shape, color), at in zip(looks, positions, strict=True)]
    return Scene(kind, background, tuple(things))


def _thing(rng: np.random.Generator, shape: str, color: str, position: str) -> Thing:
    x, y = POSITIONS[position] + rng.uniform(-JITTER, JITTER, 2)
    radius = CENTER_RADIUS if position == "center" else RADIUS
    return Thing(shape, color, position, float(x), float(y), radius)


def _pick(rng: np.random.Generator, names: Sequence[str] | dict[str, tuple[int, int, int]]) -> str:
    return tuple(names)[rng.integers(len(names))]


def _some(rng: np.random.Generator, names: Sequence[str], count: int) -> list[str]:
    return [names[i] for i in rng.permutation(len(names))[:count]]


def coverage(shape: str, x: float, y: float, radius: float) -> npt.NDArray[np.float32]:
    """The share of each pixel (SIZE, SIZE) that a shape centered at (x, y) covers, from its distance to the outline."""
    dx = np.arange(SIZE, dtype=np.float32)[None, :] + 0.5 - x
    dy = np.arange(SIZE, dtype=np.float32)[:, None] + 0.5 - y
    if shape == "circle":
        outside = np.hypot(dx, dy) - radius
    else:
        edges = [nx * dx + ny * dy - offset * radius for nx, ny, offset in _EDGES[shape]]
        outside = np.maximum.reduce(np.broadcast_arrays(*edges))
    share: npt.NDArray[np.float32] = np.clip(0.5 - outside, 0, 1).astype(np.float32)
    return share


def render(scene: Scene) -> npt.NDArray[np.uint8]:
    """The picture (SIZE, SIZE, 3), anti-aliased."""
    image = np.empty((SIZE, SIZE, 3), np.float32)
    image[:] = BACKGROUNDS[scene.background]
    for thing in scene.things:
        alpha = coverage(thing.shape, thing.x, thing.y, thing.radius)[..., None]
        image += alpha * (np.array(COLORS[thing.color], np.float32) - image)
    return np.rint(image).astype(np.uint8)
