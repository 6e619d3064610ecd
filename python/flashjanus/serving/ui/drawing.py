"""A drawing in progress, and how its pictures are saved."""

from __future__ import annotations

import json
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from gradio.processing_utils import save_pil_to_cache
from PIL import Image

from flashjanus.disk.names import slug
from flashjanus.serving.async_engine import AsyncEngine
from flashjanus.serving.messages import Begun, ImageRequest, Images, Partial, Picture, Step

PREVIEWS = 24
"""The most partial images of a drawing: nobody would see more."""


@dataclass
class Drawing:
    """The current state of a drawing. steps: evaluations of each image."""

    request: ImageRequest
    began: float = field(default_factory=time.monotonic)
    begun: bool = False
    step: int = 0
    steps: int = 0
    partial: Partial | None = None
    result: Images | None = None
    seconds: float = 0.0

    async def draw(self, engine: AsyncEngine) -> None:
        """Draw until the images are finished. Raises FlashJanusError; canceling this task cancels the request."""
        async with await engine.submit(self.request) as events:
            async for event in events:
                if isinstance(event, Begun):
                    self.begun = True
                elif isinstance(event, Step):
                    self.step, self.steps = event.step, event.steps
                elif isinstance(event, Partial):
                    self.partial = event
                elif isinstance(event, Images):
                    self.result, self.seconds = event, time.monotonic() - self.began

    @property
    def seen(self) -> tuple[object, ...]:
        """The values on which the display depends."""
        return self.begun, self.step, self.partial


def save(result: Images, prompt: str, options: Mapping[str, Any], folder: str) -> list[tuple[str, str]]:
    """Save the images as PNG files in `folder`, with the settings that made them. Returns paths and captions."""
    saved = []
    for number, (picture, seed, score) in enumerate(zip(result.images, *_lists(result), strict=True)):
        image = Image.fromarray(picture)
        image.info = {"prompt": prompt, "options": json.dumps({**options, "seed": seed})}
        name = f"{slug(prompt)}-{number if seed is None else seed}"
        caption = "" if seed is None else f"seed {seed}"
        if score is not None:
            caption += f", score {score:.2f}"
        saved.append((save_pil_to_cache(image, folder, name, "png"), caption))
    return saved


def _lists(result: Images) -> tuple[Sequence[int | None], Sequence[float | None]]:
    none = [None] * len(result.images)
    return result.seeds or none, result.scores or none


def enlarged(picture: Picture, size: tuple[int, int] | None) -> Image.Image:
    """A partial image, scaled to the size (height, width) of the final picture."""
    image = Image.fromarray(picture)
    return image if size is None else image.resize(size[::-1], Image.Resampling.BICUBIC)
