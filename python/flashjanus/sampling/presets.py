"""The sampler of a request: an option that is given wins over the preset's."""

from __future__ import annotations

from collections.abc import Sequence
from numbers import Real
from typing import Any

from flashjanus.sampling import checks
from flashjanus.sampling.options import PRESETS as PRESETS
from flashjanus.sampling.options import USUAL, ImageOptions, is_times
from flashjanus.sampling.schedule import Sampler


def sampler_of(options: ImageOptions) -> Sampler:
    """Of checked options."""
    given = {name: value for name in USUAL if (value := getattr(options, name)) is not None}
    return Sampler(**{**PRESETS[options.preset], **given})


def sampler(preset: str = "exact", **given: Any) -> Sampler:
    """The options of a preset, but for those that are given (not None). Raises InputError."""
    return sampler_of(ImageOptions(preset=preset, **given).checked())


def samplers(rows: int, **given: Any) -> list[Sampler]:
    """`sampler` for each row, of options that are one value or one per row. Raises InputError."""
    interval = given.get("guidance_interval")
    if isinstance(interval, Sequence) and any(isinstance(end, Real) for end in interval):
        given["guidance_interval"] = [interval] * rows  # two times are one value
    if is_times(given.get("step_cache")):
        given["step_cache"] = [given["step_cache"]] * rows
    columns = {name: checks.per_row(name, value, rows) for name, value in given.items()}
    return [sampler(**{name: values[row] for name, values in columns.items()}) for row in range(rows)]
