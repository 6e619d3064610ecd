"""Which dtype each kind of tensor has, and in which form weights are kept."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch

from flashjanus.checkpoint import Target
from flashjanus.engine.ops import nibbles, tiles
from flashjanus.engine.ops.quantize import quantized
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

    def quantized(self, target: Target) -> torch.dtype | None:
        """In which 8 bits a weight is kept, or None."""
        if self.quantization is None or not target.quantizable:
            return None
        return torch.float8_e4m3fn if self.quantization == "fp8" else torch.int8

    def specs(self, target: Target) -> dict[str, TensorSpec]:
        """What is kept of a weight, by name: the weight, in 8 bits its scales too."""
        shape, dtype = tuple(target.shape), self.quantized(target)
        if dtype is not None:
            scale = TensorSpec(shape[:1], torch.float32)
            specs = {target.name: TensorSpec(shape, dtype, self._tiled(target, dtype)), f"{target.name}.scale": scale}
            if self._in_int4(target):
                packed, scales = nibbles.shapes(*target.shape)
                specs[f"{target.name}.int4"] = TensorSpec(packed, torch.uint8)
                specs[f"{target.name}.int4.scale"] = TensorSpec(scales, torch.bfloat16)
            return specs
        dtype = self.matrix if target.kind == "matrix" else self.vector
        return {target.name: TensorSpec(shape, dtype, self._tiled(target, dtype))}

    def kept(
        self, target: Target, weight: torch.Tensor, scale: torch.Tensor | None = None
    ) -> Mapping[str, torch.Tensor]:
        """The tensors of `specs(target)` from the weight itself, in its dtype or, with its scale, in 8 bits."""
        dtype = self.quantized(target)
        if dtype is not None and scale is None:
            weight, scale = quantized(weight, dtype)
        tensors = {target.name: weight}
        if scale is not None:
            tensors[f"{target.name}.scale"] = scale
        if scale is not None and self._in_int4(target):
            packed, scales = nibbles.of_int8(weight, scale)
            tensors |= {f"{target.name}.int4": packed, f"{target.name}.int4.scale": scales}
        if self.specs(target)[target.name].tiled:
            tensors[target.name] = tiles.tile(tensors[target.name])
        return tensors

    def _in_int4(self, target: Target) -> bool:
        return self.quantization == "int4" and self.tiled and target.in_4_bits

    def _tiled(self, target: Target, dtype: torch.dtype) -> bool:
        return self.tiled and target.tileable(dtype)
