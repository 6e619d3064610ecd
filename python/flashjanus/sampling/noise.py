"""Where images start: from seeds, from torch's generators, or from latents as they are given."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch

from flashjanus.errors import InputError
from flashjanus.sampling import checks


@dataclass(frozen=True)
class Noise:
    """`rows(start, end)`: noise (end - start, c, H, W), float32, of these images. seeds: one per image, None where
    something else gave the noise."""

    rows: Callable[[int, int], torch.Tensor]
    seeds: list[int] | None


@dataclass(frozen=True)
class Start:
    """How the noise of one image or of several is drawn: shape (c, H, W), and the dtype that the generator draws in.

    together: all images of a prompt come from one draw of one seed, as in the official code.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype
    together: bool

    def noise(self, prompts: int, images: int, seed: Any, generator: Any, latents: Any) -> Noise:
        """Of `images` images of each prompt, by the one of these that is not None; without any, by a new seed.

        seed: that of the first image, or one for each. generator: one, which draws them all at once, or one for each.
        latents: the noise itself. Raises InputError.
        """
        total = prompts * images
        given = [
            name
            for name, value in (("seed", seed), ("generator", generator), ("latents", latents))
            if value is not None
        ]
        if len(given) > 1:
            raise InputError(f"{', '.join(given)}: each says what the images start from; expected one of them alone")
        if latents is not None:
            tensor = checks.tensor("latents", latents, (total, *self.shape), checks.FLOATS).float()
            return Noise(lambda start, end: tensor[start:end], None)
        if generator is not None:
            drawn = self._generated(generator, total)
            return Noise(lambda start, end: drawn[start:end], None)
        if self.together and (seed is None or not _is_several(seed)):
            first = checks.first_seed(seed, total)
            return self._of_prompts([first + i for i in range(prompts)], images)
        seeds = seeds_of(seed, total)
        return Noise(lambda start, end: torch.cat([self._seeded(s, 1) for s in seeds[start:end]]), seeds)

    def _of_prompts(self, seeds: list[int], images: int) -> Noise:
        def rows(start: int, end: int) -> torch.Tensor:
            prompts = range(start // images, -(-end // images))
            drawn = torch.cat([self._seeded(seeds[p], images) for p in prompts])
            return drawn[start - prompts.start * images :][: end - start]

        return Noise(rows, [seed for seed in seeds for _ in range(images)])

    def _seeded(self, seed: int, images: int) -> torch.Tensor:
        return self._draw(torch.Generator("cpu").manual_seed(seed), images)

    def _draw(self, generator: torch.Generator, images: int) -> torch.Tensor:
        shape = (images, *self.shape)
        return torch.randn(shape, generator=generator, dtype=self.dtype, device=generator.device).float()

    def _generated(self, generator: Any, total: int) -> torch.Tensor:
        if isinstance(generator, torch.Generator):
            return self._draw(generator, total)
        if not isinstance(generator, Sequence) or not all(isinstance(one, torch.Generator) for one in generator):
            raise InputError(f"generator: expected a torch.Generator, or a list of them, got {generator!r:.80}")
        if len(generator) != total:
            raise InputError(f"generator: expected one, or {total}, one per image, got {len(generator)}")
        return torch.cat([self._draw(one, 1).cpu() for one in generator])


def _is_several(seed: Any) -> bool:
    return (isinstance(seed, Sequence) and not isinstance(seed, str)) or (
        isinstance(seed, np.ndarray | torch.Tensor) and seed.ndim == 1
    )


def seeds_of(seed: Any, total: int) -> list[int]:
    """The seed of each of so many images: as given, or one after the other from the one that is given, or a new one.

    Raises InputError.
    """
    if seed is None or not _is_several(seed):
        first = checks.first_seed(seed, total)
        return list(range(first, first + total))
    seeds = seed.tolist() if isinstance(seed, np.ndarray | torch.Tensor) else list(seed)
    if len(seeds) != total:
        raise InputError(f"seed: expected one, or {total}, one per image, got {len(seeds)}")
    return [checks.integer(f"seed[{i}]", one, 0, checks.MAX_SEED) for i, one in enumerate(seeds)]
