"""Which dtype each kind of tensor has, and in which format weights are stored."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

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
    tiled: linears' weights that fit are stored in AMX tiles.
    quantization: None, or "int8": the language model's linears are in int8, with one scale per output. The image
    encoder and the U-ViT keep `matrix`: they take a small share of the time, and their errors affect every pixel.
    "fp8": the same in float8_e4m3fn. "int4": as "int8", and the layers' linears also in 4 bits, made from the 8-bit
    ones, for decoding a few rows.
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

    def kept(self, target: Target) -> TensorSpec | Weight:
        """A linear's weight in its formats, or the spec of any other tensor."""
        dtype = self.matrix if target.kind == "matrix" else self.vector
        weight = target.weight(self.matrix, self.quantization, self.tiled)
        return TensorSpec(tuple(target.shape), dtype) if weight is None else weight

    def quantized(self, target: Target) -> torch.dtype | None:
        """The 8-bit dtype in which a weight is stored, or None."""
        kept = self.kept(target)
        stored = kept.formats[0].stored if isinstance(kept, Weight) else None
        return stored.dtype if isinstance(stored, Rows) else None

    def pack(
        self, target: Target, weight: torch.Tensor, scale: torch.Tensor | None = None
    ) -> Mapping[str, torch.Tensor]:
        """The tensors to keep for a target, from its weight in its dtype or, with its scale, in 8 bits."""
        kept = self.kept(target)
        return kept.pack(weight, scale) if isinstance(kept, Weight) else {target.name: weight}
