"""The Frechet distance between two sets of pictures in the feature space of a model's own understanding encoder."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Protocol

import torch
from PIL import Image

from flashjanus.measure.evaluation.statistics import Z

BATCH = 32
RESAMPLES = 16


class Encoder(Protocol):
    """The part of `JanusFlow` that this module needs."""

    @property
    def processor(self) -> Any: ...

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor: ...


@dataclass(frozen=True)
class FrechetReport:
    """distance: between drawn pictures and ground truth, with its 95% limits; floor: between two ground truths."""

    distance: float
    low: float
    high: float
    floor: float
    images: int

    def to_json(self) -> dict[str, float | int]:
        return {
            "distance": self.distance,
            "low": self.low,
            "high": self.high,
            "floor": self.floor,
            "images": self.images,
        }


def features(model: Encoder, images: Sequence[Image.Image]) -> torch.Tensor:
    """(B, D) float64: for each picture, the encoder's aligned features averaged over its tokens."""
    rows = []
    for start in range(0, len(images), BATCH):
        pixels = torch.stack([model.processor.preprocess(image) for image in images[start : start + BATCH]])
        rows.append(model.encode_images(pixels).double().mean(1).cpu())
    return torch.cat(rows)


def compare(drawn: torch.Tensor, truth: torch.Tensor, other_truth: torch.Tensor) -> FrechetReport:
    """The report on three sets of features (B, D), B >= 2; rows i of `drawn` and `truth` belong to the same prompt.

    The limits are distance -+ z times the standard deviation over bootstrap resamples of the prompts. Percentiles would
    be too high: a resample repeats rows, and the distance grows as distinct rows get fewer.
    """
    distance = frechet_distance(drawn, truth)
    generator = torch.Generator().manual_seed(0)
    resampled = []
    for _ in range(RESAMPLES):
        rows = torch.randint(len(drawn), (len(drawn),), generator=generator)
        resampled.append(frechet_distance(drawn[rows], truth[rows]))
    half = Z * float(torch.tensor(resampled, dtype=torch.float64).std())
    floor = frechet_distance(truth, other_truth)
    return FrechetReport(distance, max(0.0, distance - half), distance + half, floor, len(drawn))


def frechet_distance(a: torch.Tensor, b: torch.Tensor) -> float:
    """|mean_a - mean_b|^2 + tr(A + B - 2 (A^1/2 B A^1/2)^1/2), float64, of rows (n, D), n >= 2.

    A, B: covariances. Both square roots are of symmetric matrices, taken through their eigenvalues. Source: Heusel et
    al., 2017, after Dowson and Landau, 1982.
    """
    a, b = a.double(), b.double()
    cov_a, cov_b = (torch.cov(rows.T).reshape(2 * rows.shape[1:]) for rows in (a, b))
    values, vectors = torch.linalg.eigh(cov_a)
    root = (vectors * values.clamp_min(0).sqrt()) @ vectors.T
    product = root @ cov_b @ root
    cross = torch.linalg.eigvalsh((product + product.T) / 2).clamp_min(0).sqrt().sum()
    distance = (a.mean(0) - b.mean(0)).square().sum() + cov_a.trace() + cov_b.trace() - 2 * cross
    return max(0.0, float(distance))
