"""Runs a model in one mode: its latents for given noise, and the time per image."""

from __future__ import annotations

import inspect
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch

from flashjanus.api.janusflow import ROWS_AT_ONCE, JanusFlow
from flashjanus.errors import InputError
from flashjanus.measure.timing import Case, Clock, timed

from .asked import noise, prompt_ids
from .modes import Mode

IMAGE = Case("image")


@dataclass(frozen=True)
class Work:
    """What every mode draws: prompt k starts from seed + k. common: drawing options that all modes share."""

    prompts: list[str]
    seed: int
    common: dict[str, Any]


class Subject:
    """`model` in `mode`, as an engine for `measure.timing.measure`."""

    def __init__(self, mode: Mode, model: JanusFlow, work: Work, clock: Clock = time.perf_counter) -> None:
        self.mode, self.model, self.work, self.clock = mode, model, work, clock
        self.ids = prompt_ids(model, work.prompts)
        self.flowing, self.drawing = {**work.common, **mode.flowing}, {**work.common, **mode.sampling}
        self._turn = 0
        known = inspect.signature(model.sample_latents).parameters
        for option in self.flowing:
            if option not in known:
                raise InputError(f"mode {mode.name}: expected options that sample_latents knows, got {option!r}")
        chosen = sorted(mode.sampling.keys() - mode.flowing.keys())
        if chosen and (model.tokenizer is None or model.runner.vae_config is None):
            raise InputError(
                f"mode {mode.name}: {chosen[0]} needs a tokenizer and a VAE, which {model.name} does not have"
            )

    @property
    def name(self) -> str:
        return self.mode.name

    def latents(self) -> torch.Tensor:
        """(B, c, H, W), float32, one per prompt; if a mode chooses among several images, the first one's latents."""
        first = self.work.seed
        z0 = noise(self.model, range(first, first + len(self.ids)))
        parts = range(0, len(self.ids), ROWS_AT_ONCE)
        return torch.cat([self._flow(self.ids[at : at + ROWS_AT_ONCE], z0[at : at + ROWS_AT_ONCE]) for at in parts])

    def round(self, cases: Sequence[Case], repeats: int) -> Iterator[tuple[Case, list[float]]]:
        """Seconds of `repeats` images, drawn one by one. Rounds go through the prompts, in all modes alike."""
        first = self._turn * repeats
        self._turn += 1
        self._draw(first)
        for case in cases:
            yield case, [self._seconds(first + i) for i in range(repeats)]

    def _seconds(self, number: int) -> float:
        self.model.prefixes.clear()  # each image counts as the first of its prompt
        return timed(partial(self._draw, number), self.clock)

    def _draw(self, number: int) -> None:
        k, seed = number % len(self.ids), self.work.seed + number
        if self.model.tokenizer is not None:
            decoded = self.model.runner.vae_config is not None
            kind = "pt" if decoded else "latent"
            self.model.generate_image(self.work.prompts[k], seed=seed, output_type=kind, **self.drawing)
            return
        z = self._flow(self.ids[k : k + 1], noise(self.model, range(seed, seed + 1)))
        if self.model.runner.vae_config is not None:
            self.model.decode_latents(z)
        self.model.runner.synchronize()

    def _flow(self, ids: list[list[int]], z0: torch.Tensor) -> torch.Tensor:
        z = self.model.sample_latents(ids, z0, **self.flowing)
        assert isinstance(z, torch.Tensor)  # a pair only with trace, which no mode sets
        return z
