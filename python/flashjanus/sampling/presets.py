"""Options of image generation by name; one that is given wins over the preset's."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Real
from typing import Any

from flashjanus.sampling import checks
from flashjanus.sampling.schedule import Sampler, is_times

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "exact": {},
    "balanced": dict(
        solver="ab2",
        num_inference_steps=20,
        timestep_shift=0.7,
        step_cache=(0.0, 0.13, 0.2, 0.26, 0.37, 0.48, 0.63, 0.76, 0.92),
    ),
    "fast": dict(
        solver="ab2",
        num_inference_steps=16,
        timestep_shift=0.7,
        step_cache=(0.0, 0.16, 0.24, 0.39, 0.52, 0.7, 0.86),
    ),
}
"""exact: what the official code computes. The times of step_cache are what `flashjanus schedule` finds for the built-in
model; it finds them for another in the same way."""


def sampler(preset: str = "exact", **given: Any) -> Sampler:
    """The options of a preset, but for those that are given (not None). Raises InputError."""
    checks.choice("preset", preset, list(PRESETS))
    return Sampler.of(**{**PRESETS[preset], **{name: value for name, value in given.items() if value is not None}})


def samplers(rows: int, **given: Any) -> list[Sampler]:
    """`sampler` for each row, of options that are one value or one per row. Raises InputError."""
    interval = given.get("guidance_interval")
    if isinstance(interval, Sequence) and any(isinstance(end, Real) for end in interval):
        given["guidance_interval"] = [interval] * rows  # two times are one value
    if is_times(given.get("step_cache")):
        given["step_cache"] = [given["step_cache"]] * rows
    columns = {name: checks.per_row(name, value, rows) for name, value in given.items()}
    return [sampler(**{name: values[row] for name, values in columns.items()}) for row in range(rows)]
