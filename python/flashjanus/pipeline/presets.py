"""Options of image generation by name; one that is given wins over the preset's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from . import options
from .schedule import Sampler

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "balanced": dict(solver="ab2", num_inference_steps=16, timestep_shift=0.7),
    "fast": dict(solver="ab2", num_inference_steps=10, timestep_shift=0.7, guidance_interval=(0.0, 0.8)),
}
"""exact: what the official code computes."""


def sampler(preset: str = "exact", **given: Any) -> Sampler:
    """The options of a preset, but for those that are given (not None). Raises InputError."""
    options.choice("preset", preset, list(PRESETS))
    return Sampler.of(**{**PRESETS[preset], **{name: value for name, value in given.items() if value is not None}})


def samplers(rows: int, **given: Any) -> list[Sampler]:
    """`sampler` for each row, of options that are one value or one per row. Raises InputError."""
    interval = given.get("guidance_interval")
    if isinstance(interval, Sequence) and any(isinstance(end, Real) for end in interval):
        given["guidance_interval"] = [interval] * rows  # two times are one value
    columns = {name: options.per_row(name, value, rows) for name, value in given.items()}
    return [sampler(**{name: values[row] for name, values in columns.items()}) for row in range(rows)]
