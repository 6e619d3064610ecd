"""Which dtype each kind of tensor has."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class Policy:
    """Dtypes of a model.

    matrix: weights and inputs of the big GEMMs; key/value caches.
    vector: norm weights, position tables, time embedding, modulation tables, first and last layer of the U-ViT.
    residual: the streams that many layers add to.
    latents: z and the Euler update.
    `numerics="exact"` keeps all but `matrix` in float32; `"official"` rounds where the official bfloat16 loop does.
    """

    matrix: torch.dtype
    vector: torch.dtype
    residual: torch.dtype
    latents: torch.dtype
    numerics: str = "exact"

    @staticmethod
    def of(dtype: torch.dtype, numerics: str = "exact") -> Policy:
        wide = dtype if numerics == "official" else torch.float32
        return Policy(matrix=dtype, vector=wide, residual=wide, latents=wide, numerics=numerics)
