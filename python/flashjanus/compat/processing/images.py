"""Reads images as the official code does: with their stored colors, not rotated, and without white for transparency.

Source: `load_pil_images` and `VLMImageProcessor` of deepseek-ai/Janus.
"""

from __future__ import annotations

import json
import os
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from PIL import Image

from flashjanus.compat.processing.outputs import DictOutput
from flashjanus.disk.writing import write_text
from flashjanus.engine.runtime.entry import entry
from flashjanus.errors import InputError
from flashjanus.inputs.decoding import opened
from flashjanus.inputs.images import ImageProcessor, ImageSource, load_image
from flashjanus.inputs.sources import from_path, from_text


def load_pil_images(conversations: Sequence[Mapping[str, Any]]) -> list[Image.Image]:
    """Load the images that the messages of a conversation list under "images", in order, as RGB.

    Each is a path, a `data:` or `file:` URL, a PIL image, or whatever else `flashjanus.inputs.images.load_image` takes.
    Raises `InputError`, also for an `http:` or `https:` URL.
    """
    images: list[Image.Image] = []
    for index, message in enumerate(conversations):
        given = message.get("images") or ()
        if isinstance(given, str | bytes | os.PathLike | Image.Image):
            raise InputError(f"conversations[{index}]: 'images' must be a list of images, got {type(given).__name__}")
        images += [rgb(image) for image in given]
    return images


def rgb(source: ImageSource) -> Image.Image:
    """Convert a path, a URL, or a PIL image to RGB as PIL does, and anything else with `load_image`."""
    if isinstance(source, str):
        return from_text(source, opened).convert("RGB")
    if isinstance(source, os.PathLike):
        return from_path(source, opened).convert("RGB")
    if isinstance(source, Image.Image):
        return source.convert("RGB")
    return load_image(source)


class Pixels(DictOutput):
    """The processed images: pixel_values (n, 3, S, S), float32."""

    def __init__(self, pixel_values: Any) -> None:
        self.pixel_values = pixel_values


@dataclass(frozen=True)
class VLMImageProcessor(ImageProcessor):
    """Processes images as preprocessor_config.json says: scales the long side to S and centers the image on a square of
    the mean color."""

    @property
    def background_color(self) -> tuple[int, ...]:
        """The color of the square, 0 to 255."""
        return tuple(int(255 * mean) for mean in self.image_mean)

    @property
    def default_shape(self) -> list[int]:
        """The shape of one processed image: [3, S, S]."""
        return [3, self.image_size, self.image_size]

    @entry
    def __call__(
        self, images: ImageSource | Sequence[ImageSource] | None = None, return_tensors: str | None = "pt"
    ) -> Pixels:
        """Process one image or several. pixel_values (n, 3, S, S), float32, is a tensor for "pt", an array for "np",
        and a list of arrays for None. Raises `InputError`."""
        several = isinstance(images, list | tuple)
        given: Sequence[ImageSource] = () if images is None else images if several else [images]  # type: ignore[assignment, list-item]
        pixels = [self.preprocess(rgb(image)) for image in given]
        if return_tensors is None:
            return Pixels([image.numpy() for image in pixels])
        if return_tensors not in ("pt", "np"):
            raise InputError(f"return_tensors: expected 'pt', 'np' or None, got {return_tensors!r}")
        stacked = torch.stack(pixels) if pixels else torch.zeros(0, *self.default_shape)
        return Pixels(stacked if return_tensors == "pt" else stacked.numpy())

    def save_pretrained(self, folder: str | os.PathLike[str]) -> None:
        """Write preprocessor_config.json into a folder."""
        config = {**asdict(self), "image_processor_type": "VLMImageProcessor", "processor_class": "VLChatProcessor"}
        write_text(Path(folder, "preprocessor_config.json"), json.dumps(config, indent=1))
