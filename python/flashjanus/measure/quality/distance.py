"""Measures how far latents are from the converged solution, and how similar two runs are.

The error of Euler's method is proportional to the step length, so a few hundred steps in float32 stand for the solution
of the flow's equation. A faster mode is judged by its distance to that, divided by the distance of the exact mode.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch

from flashjanus.errors import InputError
from flashjanus.measure.timing import ENOUGH, Ratio, paired

ENOUGH_PROMPTS = 5
"""With fewer prompts, the sign test's interval has less confidence than `timing.ENOUGH`."""


def distances(latents: torch.Tensor, converged: torch.Tensor) -> list[float]:
    """sqrt(mean (z - z*)^2) for each of the latents (B, ...)."""
    return [float(d) for d in (latents.double() - converged.double()).flatten(1).square().mean(1).sqrt()]


def relative(found: Sequence[float], exact: Sequence[float]) -> Ratio:
    """Median over prompts of a mode's distance divided by the exact mode's. Raises InputError if the latter is 0."""
    if not all(exact):
        raise InputError(
            "converged_steps: expected more steps than the exact mode takes, because its distance would be 0 otherwise"
        )
    return paired(exact, found)


def is_farther(found: Ratio, bound: float) -> bool:
    """Whether the distance certainly exceeds `bound` times the exact mode's. Raises InputError if prompts are few."""
    if found.confidence < ENOUGH:
        raise InputError(f"bound: expected at least {ENOUGH_PROMPTS} prompts, because fewer are not conclusive")
    return found.low > bound


def psnr(found: torch.Tensor, exact: torch.Tensor, peak: float | None = None) -> list[float]:
    """10 log10(peak^2 / mean (x - y)^2) of each, in dB; infinite if they are equal. If `peak` is None, that of `exact`.

    The peak of latents is their largest value minus their smallest.
    """
    values = []
    for x, y in zip(found.double(), exact.double(), strict=True):
        error = float((x - y).square().mean())
        top = float(y.max() - y.min()) if peak is None else peak
        values.append(math.inf if error == 0 else 10 * math.log10(top * top / error))
    return values


def cosine(found: torch.Tensor, exact: torch.Tensor) -> list[float]:
    """x . y / (|x| |y|) of each."""
    return [
        float(c) for c in torch.nn.functional.cosine_similarity(found.double().flatten(1), exact.double().flatten(1))
    ]
