"""Options of image generation by name; one that is given wins over the preset's."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from . import options
from .schedule import Sampler

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "balanced": dict(solver="dpmpp2m", num_inference_steps=16),
    "fast": dict(solver="dpmpp2m", num_inference_steps=10, uncond_every=2, guidance_interval=(0.0, 0.8)),
}
"""exact: what the official code computes."""


def sampler(preset: str = "exact", **given: Any) -> Sampler:
    """The options of a preset, but for those that are given (not None). Raises InputError."""
    options.choice("preset", preset, list(PRESETS))
    return Sampler.of(**{**PRESETS[preset], **{name: value for name, value in given.items() if value is not None}})
