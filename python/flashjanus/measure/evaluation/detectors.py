"""The interface of object detectors, how one is loaded, and the built-in detector of the shapes world."""

from __future__ import annotations

import importlib
import math
import sys
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from PIL import Image

from flashjanus.errors import InputError
from flashjanus.measure.evaluation import judge, world


@dataclass(frozen=True)
class Detection:
    """One object in a picture: its class, its color if known, its box (left, top, right, bottom) in pixels with y
    pointing down, and its confidence from 0 to 1."""

    label: str
    box: tuple[float, float, float, float]
    score: float = 1.0
    color: str | None = None

    def __post_init__(self) -> None:
        numbers = (*self.box, self.score)
        if not (isinstance(self.label, str) and isinstance(self.color, str | None)):
            raise InputError(f"detection: expected words for label and color, got {self.label!r}, {self.color!r}")
        if len(self.box) != 4 or not all(isinstance(n, int | float) and math.isfinite(n) for n in numbers):
            raise InputError(f"detection of {self.label!r}: expected finite numbers, got {self.box!r}, {self.score!r}")
        if self.box[0] > self.box[2] or self.box[1] > self.box[3] or not 0 <= self.score <= 1:
            raise InputError(
                f"detection of {self.label!r}: expected a box (left, top, right, bottom) and a score from 0 to 1, "
                f"got {self.box}, {self.score}"
            )


class Detector(Protocol):
    """Finds the objects in an RGB picture, in any order."""

    def __call__(self, image: Image.Image, /) -> list[Detection]: ...


def load_detector(name: str) -> Detector:
    """The detector "module:attribute": a function, or a class that is called without arguments first.

    Modules in the current folder are found too. Raises InputError.
    """
    module_name, colon, attribute = name.partition(":")
    if not (module_name and colon and attribute):
        raise InputError(f"detector: expected MODULE:ATTRIBUTE, such as my_detector:detect, got {name!r}")
    sys.path.insert(0, "")
    try:
        module = importlib.import_module(module_name)
    except (ImportError, ValueError) as error:
        raise InputError(f"detector {name}: cannot import {module_name}: {error}") from error
    finally:
        sys.path.remove("")
    found = getattr(module, attribute, None)
    if isinstance(found, type):
        found = found()
    if not callable(found):
        raise InputError(
            f"detector {name}: expected a callable, or a class whose instances are callable, got {found!r:.80}"
        )
    detector: Detector = found
    return detector


def no_detector() -> InputError:
    """The error for a missing detector, which says what to do."""
    return InputError(
        "--detector is missing, and none is shipped for real pictures: write a function from a PIL image to a list of "
        "flashjanus.measure.evaluation.Detection (class, box, score, color), with Mask2Former and CLIP as GenEval "
        "does, and pass --detector MODULE:FUNCTION; or draw with --out FOLDER and run GenEval's own evaluation on "
        "that folder"
    )


def detect(detector: Detector, image: Image.Image) -> list[Detection]:
    """The detections in one picture, the most confident first."""
    found = detector(image)
    if not isinstance(found, list | tuple) or not all(isinstance(one, Detection) for one in found):
        raise InputError(f"detector: expected it to return a list of Detection, got {found!r:.80}")
    return sorted(found, key=lambda detection: -detection.score)


def shapes_detector(image: Image.Image) -> list[Detection]:
    """The things that the judge finds in a picture of the shapes world, with boxes of the usual size."""
    if image.size != (world.SIZE, world.SIZE):
        expected = f"expected a picture of {world.SIZE} x {world.SIZE} pixels"
        raise InputError(f"shapes_detector: {expected}, got {image.width} x {image.height}")
    r = world.RADIUS
    return [
        Detection(seen.shape, (seen.x - r, seen.y - r, seen.x + r, seen.y + r), max(0.0, seen.overlap), seen.color)
        for seen in judge.look(np.asarray(image.convert("RGB"))).things
        if seen.shape is not None
    ]
