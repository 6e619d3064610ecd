"""Weights that depend on their names and shapes alone, so that every machine draws the same; the goldens used these.

A manifest is a JSON object {tensor name: shape}. numpy's RandomState is frozen, hence not torch's generator.
"""

from __future__ import annotations

import zlib

import numpy as np
import torch


def seeded_tensor(name: str, shape: list[int] | tuple[int, ...]) -> torch.Tensor:
    """float32 normal draw seeded by crc32(name), then shifted and scaled by what the name says the tensor is."""
    generator = np.random.RandomState(zlib.crc32(name.encode()))
    draw = generator.standard_normal(int(np.prod(shape))).astype(np.float32).reshape(shape)
    return torch.from_numpy(_scaled(name, draw))


def seeded_state_dict(manifest: dict[str, list[int]], prefix: str = "") -> dict[str, torch.Tensor]:
    """Every tensor of the manifest under its own name, drawn for prefix + name (the VAE's goldens use "vae.")."""
    return {name: seeded_tensor(prefix + name, shape) for name, shape in manifest.items()}


def _scaled(name: str, draw: np.ndarray) -> np.ndarray:
    if "channelwise_norm" in name:
        return 0.3 * draw
    if draw.ndim == 1:
        return 1 + 0.1 * draw if name.endswith("weight") else 0.05 * draw
    if any(part in name for part in ("embed_tokens", "beg_of_und", "latent")):
        return 0.5 * draw
    if "pos_embed" in name:
        return 0.1 * draw
    fan_in = int(np.prod(draw.shape[1:]))
    return draw / float(np.sqrt(fan_in))
