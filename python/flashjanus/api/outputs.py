"""What image generation returns."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:  # a server whose model is in another process handles outputs without torch
    import torch


@dataclass(frozen=True)
class ImageOutput:
    """The images of a request.

    images: a list of PIL images, or an array or tensor, depending on the requested output type. seeds: one per image,
    or None if the noise came from a generator or latents. timings: seconds for `prompt`, `flow`, `decode`, `judge`
    (with best_of only), and `total`. scores: with best_of, the score of each image, 0 to 1.
    """

    images: Any
    seeds: list[int] | None
    timings: dict[str, float] = field(default_factory=dict)
    scores: list[float] | None = None


def of_type(decoded: torch.Tensor, output_type: str) -> Any:
    """Images (B, 3, H, W), about [-1, 1], as "pil", "np" or "pt"."""
    from flashjanus.inputs.images import to_pil

    if output_type == "pil":
        return [to_pil(image) for image in decoded]
    shown = (decoded.clamp(-1, 1) + 1) / 2
    return shown if output_type == "pt" else shown.permute(0, 2, 3, 1).cpu().numpy()


def joined(outputs: Iterable[ImageOutput]) -> ImageOutput:
    """All images of a request in one output."""
    parts = list(outputs)
    images: Any = _joined([part.images for part in parts])
    timings: dict[str, float] = {}
    for part in parts:
        for name, seconds in part.timings.items():
            timings[name] = timings.get(name, 0.0) + seconds
    seeds, scores = ([getattr(part, name) for part in parts] for name in ("seeds", "scores"))
    return ImageOutput(
        images,
        None if None in seeds else [seed for own in seeds for seed in own],
        timings,
        None if None in scores else [score for own in scores for score in own],
    )


def _joined(images: Sequence[Any]) -> Any:
    if isinstance(images[0], np.ndarray):
        return np.concatenate(images)
    if isinstance(images[0], list):
        return [image for own in images for image in own]
    import torch

    return torch.cat(list(images))
