"""Recognizes the contents of a 64 x 64 picture of the shapes world by deterministic pixel analysis.

The most common palette color on the border is the background. Connected pixels that differ from it form a thing; its
color is the palette color of most of its inner pixels, and its shape is the one whose drawing overlaps it best.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from flashjanus.measure.evaluation import world

MIN_PIXELS = 24  # an eighth of the smallest shape's area; smaller specks are not counted
MIN_OVERLAP = 0.75  # intersection over union below which a thing is no shape at all
MAX_DISTANCE = 90.0  # RGB distance above which a pixel has no palette color

Image = npt.NDArray[np.uint8]
Floats = npt.NDArray[np.float32]


@dataclass(frozen=True)
class Seen:
    """One thing: shape and color (None if unrecognized), center (x, y) in pixels, and the overlap with its shape."""

    shape: str | None
    color: str | None
    x: float
    y: float
    overlap: float


@dataclass(frozen=True)
class Sight:
    """Everything seen in a picture; background is None if the border has no palette color."""

    background: str | None
    things: tuple[Seen, ...]


def look(image: Image) -> Sight:
    """The contents of `image` (SIZE, SIZE, 3)."""
    if image.shape != (world.SIZE, world.SIZE, 3) or image.dtype != np.uint8:
        expected = f"expected a u8 picture ({world.SIZE}, {world.SIZE}, 3)"
        raise ValueError(f"{expected}, got {image.dtype} {image.shape}")
    border = np.concatenate([image[0], image[-1], image[1:-1, 0], image[1:-1, -1]])
    background = _commonest(border, world.BACKGROUNDS)
    if background is None:
        return Sight(None, ())
    away = np.abs(image.astype(np.float32) - np.array(world.BACKGROUNDS[background], np.float32)).max(2)
    labels = _components(away > 64)
    things = [_describe(image, away, labels == label) for label in range(1, int(labels.max()) + 1)]
    return Sight(background, tuple(thing for thing in things if thing is not None))


def matches(scene: world.Scene, sight: Sight) -> bool:
    """True if everything in the scene is seen in its place, and nothing else is seen."""
    if sight.background != scene.background or len(sight.things) != len(scene.things):
        return False
    left = list(sight.things)
    for thing in scene.things:
        near = min(left, key=lambda seen: (seen.x - thing.x) ** 2 + (seen.y - thing.y) ** 2)
        left.remove(near)
        if (near.shape, near.color) != (thing.shape, thing.color) or max(
            abs(near.x - thing.x), abs(near.y - thing.y)
        ) > 6:
            return False
    return True


def _describe(image: Image, away: Floats, mask: npt.NDArray[np.bool_]) -> Seen | None:
    if mask.sum() < MIN_PIXELS:
        return None
    inner = mask.copy()
    inner[1:] &= mask[:-1]
    inner[:-1] &= mask[1:]
    inner[:, 1:] &= mask[:, :-1]
    inner[:, :-1] &= mask[:, 1:]
    color = _commonest(image[inner if inner.any() else mask], world.COLORS)
    shape, overlap, x, y = _best_shape(mask)
    return Seen(shape if overlap >= MIN_OVERLAP else None, color, x, y, overlap)


def _best_shape(mask: npt.NDArray[np.bool_]) -> tuple[str, float, float, float]:
    """The shape whose drawing in the mask's bounding box overlaps it best: (name, overlap, x, y of the center)."""
    rows, columns = np.flatnonzero(mask.any(1)), np.flatnonzero(mask.any(0))
    top, bottom, left, right = rows[0], rows[-1] + 1, columns[0], columns[-1] + 1
    x, width, height = (left + right) / 2, right - left, bottom - top
    best = ("", -1.0, 0.0, 0.0)
    for shape, (across, above, below) in _EXTENT.items():
        radius = (width / (2 * across) + height / (above + below)) / 2
        y = top + above * height / (above + below)
        drawn = world.coverage(shape, x, y, radius) > 0.5
        overlap = float((drawn & mask).sum() / (drawn | mask).sum())
        if overlap > best[1]:
            best = (shape, overlap, float(x), float(y))
    return best


# Half width, extent above and extent below the center of a shape of radius 1.
_EXTENT = {"circle": (1.0, 1.0, 1.0), "square": (0.88, 0.88, 0.88), "triangle": (1.0, 1.0, 0.8)}


def _commonest(colors: npt.NDArray[np.uint8], palette: dict[str, tuple[int, int, int]]) -> str | None:
    """The palette color nearest to most of `colors` (n, 3); None if most are near no palette color."""
    table = np.array(list(palette.values()), np.float32)
    distances = np.linalg.norm(colors[:, None].astype(np.float32) - table, axis=2)
    nearest = np.where(distances.min(1) <= MAX_DISTANCE, distances.argmin(1), len(table))
    counts = np.bincount(nearest, minlength=len(table) + 1)
    winner = int(counts.argmax())
    return None if winner == len(table) else tuple(palette)[winner]


def _components(mask: npt.NDArray[np.bool_]) -> npt.NDArray[Any]:
    """Labels 1.. of the 4-connected components of `mask`, in raster order; 0 elsewhere."""
    labels = np.zeros(mask.shape, np.int64)
    height, width = mask.shape
    count = 0
    for start in np.flatnonzero(mask):
        if labels.flat[start]:
            continue
        count += 1
        labels.flat[start] = count
        stack = [divmod(int(start), width)]
        while stack:
            y, x = stack.pop()
            for v, u in ((y - 1, x), (y + 1, x), (y, x - 1), (y, x + 1)):
                if 0 <= v < height and 0 <= u < width and mask[v, u] and not labels[v, u]:
                    labels[v, u] = count
                    stack.append((v, u))
    return labels
