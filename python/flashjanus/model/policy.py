"""Which dtype each kind of tensor has."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flashjanus.checkpoint import Target
from flashjanus.engine.ir import TensorSpec
from flashjanus.engine.ops import tiles


@dataclass(frozen=True)
class Policy:
    """Dtypes of a model.

    matrix: weights and inputs of the big GEMMs; key/value caches.
    vector: norm weights, position tables, time embedding, modulation tables, first and last layer of the U-ViT.
    residual: the streams that many layers add to.
    latents: z and the Euler update.
    `numerics="exact"` keeps all but `matrix` in float32; `"official"` rounds where the official bfloat16 loop does.
    tiled: weights of linears that fit are kept in AMX tiles.
    """

    matrix: torch.dtype
    vector: torch.dtype
    residual: torch.dtype
    latents: torch.dtype
    numerics: str = "exact"
    tiled: bool = False

    @staticmethod
    def of(dtype: torch.dtype, numerics: str = "exact", tiled: bool = False) -> Policy:
        wide = dtype if numerics == "official" else torch.float32
        return Policy(dtype, wide, wide, wide, numerics, tiled)

    def specs(self, target: Target) -> dict[str, TensorSpec]:
        """What is kept of a weight, by name."""
        dtype = self.matrix if target.kind == "matrix" else self.vector
        return {target.name: TensorSpec(tuple(target.shape), dtype, self._tiled(target, dtype))}

    def kept(self, target: Target, weight: torch.Tensor) -> Mapping[str, torch.Tensor]:
        """The tensors of `specs(target)` from the weight itself, in its dtype."""
        return {target.name: tiles.tile(weight) if self._tiled(target, weight.dtype) else weight}

    def _tiled(self, target: Target, dtype: torch.dtype) -> bool:
        # gated pairs of linears are stacked: each half fits, if a multiple of twice the rows does
        return (
            self.tiled
            and target.multiplied
            and tiles.ragged(target.shape[0] // 2, target.shape[1], dtype) is None
            and target.shape[0] % 2 == 0
        )
