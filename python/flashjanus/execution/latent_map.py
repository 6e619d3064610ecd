"""Turns latents into small pictures without the VAE, by a linear map of each latent's channels to red, green and
blue."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

import torch

from flashjanus.disk.reading import read_json
from flashjanus.errors import ConfigError

FILE = "preview.json"
"""The name of the map's file, beside the VAE's config."""
PICTURES = 32
"""The number of pictures to fit on, enough for a map of about ten numbers."""


@dataclass(frozen=True)
class LatentMap:
    """rgb = weight z + bias, (3, c) and (3,), in [0, 1]."""

    weight: torch.Tensor
    bias: torch.Tensor

    def show(self, latents: torch.Tensor) -> torch.Tensor:
        """Pictures (B, 3, h, w) in [0, 1], float32, of latents (B, c, h, w)."""
        weight, bias = self.weight.to(latents.device), self.bias.to(latents.device)
        return (torch.einsum("rc,bchw->brhw", weight, latents.float()) + bias[:, None, None]).clamp(0, 1)

    @staticmethod
    def read(path: Path, channels: int) -> LatentMap | None:
        """Read a map from a file. Returns None if there is no file. Raises ConfigError."""
        if not path.is_file():
            return None
        try:
            found = read_json(path, ConfigError)
            weight, bias = (torch.tensor(found[name], dtype=torch.float32) for name in ("weight", "bias"))
        except (ValueError, KeyError, TypeError) as error:
            raise ConfigError(f"{path}: expected 'weight' and 'bias' as lists of numbers; got {error}") from error
        if weight.shape != (3, channels) or bias.shape != (3,) or not all(t.isfinite().all() for t in (weight, bias)):
            raise ConfigError(
                f"{path}: expected finite numbers, weight 3 x {channels} and bias 3, got {tuple(weight.shape)} and "
                f"{tuple(bias.shape)}; remove the file, and a map is fitted when it is needed"
            )
        return LatentMap(weight, bias)

    def to_json(self) -> str:
        """The map as the JSON text that `read` parses."""
        weight = [[round(x, 4) for x in row] for row in self.weight.tolist()]
        return json.dumps({"weight": weight, "bias": [round(x, 4) for x in self.bias.tolist()]}) + "\n"


class Fit:
    """A least-squares fit from latents to the VAE's pictures of them, over all pairs added so far."""

    def __init__(self, channels: int) -> None:
        self._squares = torch.zeros(channels + 1, channels + 1, dtype=torch.float64)
        self._products = torch.zeros(channels + 1, 3, dtype=torch.float64)
        self.pictures = 0

    def add(self, latents: torch.Tensor, pictures: torch.Tensor) -> None:
        """Add latents (B, c, h, w) and their pictures (B, 3, H, W) in [-1, 1]."""
        small = torch.nn.functional.interpolate(pictures.float().cpu(), latents.shape[2:], mode="area").clamp(-1, 1)
        x = latents.double().cpu().movedim(1, -1).flatten(0, -2)
        x = torch.cat([x, x.new_ones(len(x), 1)], dim=1)
        self._squares += x.T @ x
        self._products += x.T @ ((small.double() + 1) / 2).movedim(1, -1).flatten(0, -2)
        self.pictures += len(latents)

    def map(self) -> LatentMap:
        """The map that fits the pictures best."""
        found = torch.linalg.lstsq(self._squares, self._products, driver="gelsd").solution.float().T
        return LatentMap(found[:, :-1].contiguous(), found[:, -1].contiguous())


class Previews:
    """The map of a model's VAE: the one stored with the model, or one that is fitted on the first pictures drawn."""

    def __init__(self, kept: LatentMap | None, channels: int) -> None:
        self.map = kept
        self._fit = None if kept is not None else Fit(channels)

    def learn(self, latents: torch.Tensor, pictures: torch.Tensor) -> None:
        """Learn from latents (B, c, h, w) at t = 1 and their pictures (B, 3, H, W), until PICTURES have been seen."""
        if self._fit is not None and self._fit.pictures < PICTURES:
            self._fit.add(latents, pictures)
            self.map = self._fit.map()
