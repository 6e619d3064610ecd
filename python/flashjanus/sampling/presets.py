"""Build the sampler of a request. A given option takes precedence over the preset's value."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from flashjanus.sampling import checks
from flashjanus.sampling.options import PRESETS as PRESETS
from flashjanus.sampling.options import USUAL, ImageOptions, is_times
from flashjanus.sampling.schedule import Sampler


def sampler_of(options: ImageOptions) -> Sampler:
    """The sampler that checked options describe."""
    given = {name: value for name in USUAL if (value := getattr(options, name)) is not None}
    return Sampler(**{**PRESETS[options.preset], **given})


def sampler(preset: str = "exact", **given: Any) -> Sampler:
    """The sampler of a preset. Options that are not None override the preset. Raises InputError."""
    return sampler_of(ImageOptions(preset=preset, **given).checked())


def samplers(rows: int, **given: Any) -> list[Sampler]:
    """The sampler of each row. Each option is one value for all rows or a list with one per row. Raises InputError."""
    interval = given.get("guidance_interval")
    if isinstance(interval, Sequence) and any(isinstance(end, Real) for end in interval):
        given["guidance_interval"] = [interval] * rows  # two numbers are one interval, not one value per row
    if is_times(given.get("step_cache")):
        given["step_cache"] = [given["step_cache"]] * rows
    columns = {name: checks.per_row(name, value, rows) for name, value in given.items()}
    return [sampler(**{name: values[row] for name, values in columns.items()}) for row in range(rows)]
