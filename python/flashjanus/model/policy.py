"""Which dtype each kind of tensor has, and in which form weights are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch

from flashjanus.checkpoint import Target
from flashjanus.engine.formats import Weight
from flashjanus.engine.formats.rows import Rows
from flashjanus.engine.specs import TensorSpec


@dataclass(frozen=True)
class Policy:
    """Dtypes of a model.

    matrix: weights and inputs of the big GEMMs; key/value caches.
    vector: norm weights, position tables, time embedding, modulation tables, first and last layer of the U-ViT.
    residual: the streams that many layers add to.
    latents: z and the Euler update.
    `numerics="exact"` keeps all but `matrix` in float32; `"official"` rounds where the official bfloat16 loop does.
    tiled: weights of linears that fit are kept in AMX tiles.
    quantization: None, or "int8": the language model's linears in int8, with a scale for each output. The image
    encoder and the U-ViT keep `matrix`: they take a small share of the time, and their errors reach every pixel.
    "fp8": the same in float8_e4m3fn. "int4", of a tiled model: as "int8", and its layers' linears in 4 bits besides,
    made from those in 8, for decoding a few rows.
    """

    matrix: torch.dtype
    vector: torch.dtype
    residual: torch.dtype
    latents: torch.dtype
    numerics: str = "exact"
    tiled: bool = False
    quantization: str | None = None

    @staticmethod
    def of(dtype: torch.dtype, numerics: str = "exact", tiled: bool = False, quantization: str | None = None) -> Policy:
        wide = dtype if numerics == "official" else torch.float32
        return Policy(dtype, wide, wide, wide, numerics, tiled, quantization)

    def weight(self, target: Target) -> Weight | None:
        """A linear's weight as it is kept, or None of another tensor."""
        return target.weight(self.matrix, self.quantization, self.tiled)

    def quantized(self, target: Target) -> torch.dtype | None:
        """In which 8 bits a weight is stored, or None."""
        stored = None if (weight := self.weight(target)) is None else weight.formats[0].stored
        return stored.dtype if isinstance(stored, Rows) else None

    def specs(self, target: Target) -> dict[str, TensorSpec]:
        """What is kept of a target, by name: a linear's weight in its formats, or the tensor itself."""
        weight = self.weight(target)
        if weight is None:
            dtype = self.matrix if target.kind == "matrix" else self.vector
            return {target.name: TensorSpec(tuple(target.shape), dtype)}
        specs = weight.specs()
        return specs | {target.name: replace(specs[target.name], tiled=not weight.formats[0].by_rows)}

    def kept(
        self, target: Target, weight: torch.Tensor, scale: torch.Tensor | None = None
    ) -> Mapping[str, torch.Tensor]:
        """The tensors of `specs(target)` from the weight itself, in its dtype or, with its scale, in 8 bits."""
        kept = self.weight(target)
        return {target.name: weight} if kept is None else kept.pack(weight, scale)
