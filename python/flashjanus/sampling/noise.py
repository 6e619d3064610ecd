"""The noise from which images start. It comes from seeds, from torch generators, or from given latents."""

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
    """The noise of a request's images.

    rows: function of (start, end) that returns the noise of these images, (end - start, c, H, W), float32.
    seeds: one seed per image, or None if the noise does not come from seeds.
    """

    rows: Callable[[int, int], torch.Tensor]
    seeds: list[int] | None


@dataclass(frozen=True)
class Start:
    """How noise is drawn. shape: (c, H, W) of one image. dtype: the type in which the generator draws.

    together: all images of a prompt are drawn at once from one seed, as in the official code.
    """

    shape: tuple[int, int, int]
    dtype: torch.dtype
    together: bool

    def noise(self, prompts: int, images: int, seed: Any, generator: Any, latents: Any) -> Noise:
        """The noise of `images` images for each of `prompts` prompts. At most one of the sources may be given.

        seed: seed of the first image, or one seed per image. generator: one generator, which draws all images at once,
        or one per image. latents: the noise itself. If all are None, a new seed is drawn. Raises InputError.
        """
        total = prompts * images
        given = [
            name
            for name, value in (("seed", seed), ("generator", generator), ("latents", latents))
            if value is not None
        ]
        if len(given) > 1:
            raise InputError(f"{', '.join(given)}: expected only one of them, because each gives the starting noise")
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
            raise InputError(
                f"generator: expected one generator, or a list of {total}, one per image, got {len(generator)} of them"
            )
        return torch.cat([self._draw(one, 1).cpu() for one in generator])


def _is_several(seed: Any) -> bool:
    return (isinstance(seed, Sequence) and not isinstance(seed, str)) or (
        isinstance(seed, np.ndarray | torch.Tensor) and seed.ndim == 1
    )


def seeds_of(seed: Any, total: int) -> list[int]:
    """The seeds of `total` images. A single seed is counted up, and None stands for a new seed.

    Raises InputError.
    """
    if seed is None or not _is_several(seed):
        first = checks.first_seed(seed, total)
        return list(range(first, first + total))
    seeds = seed.tolist() if isinstance(seed, np.ndarray | torch.Tensor) else list(seed)
    if len(seeds) != total:
        raise InputError(f"seed: expected one number, or a list of {total}, one per image, got {len(seeds)} of them")
    return [checks.integer(f"seed[{i}]", one, 0, checks.MAX_SEED) for i, one in enumerate(seeds)]
