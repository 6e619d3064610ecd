"""The modules around the language model that programs call. Eligible calls run on the engine."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import nn

from flashjanus.checkpoint import JanusFlowConfig
from flashjanus.compat.core import Core, unit
from flashjanus.compat.engine import Engine
from flashjanus.compat.modules import siglip, uvit
from flashjanus.errors import InputError


@unit
class CLIPVisionTower(nn.Module):
    """Normalized pixels (B, 3, S, S) -> features (B, N, W), before the aligner."""

    def __init__(self, config: JanusFlowConfig, core: Core) -> None:
        super().__init__()
        self.vision_tower = siglip.VisionTransformer(config.understanding)
        self.core, self.image_size = core, config.understanding.image_size

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        size = self.image_size
        if images.dim() != 4 or images.shape[1:] != (3, size, size):
            raise InputError(f"images: expected pixels (B, 3, {size}, {size}), got {list(images.shape)}")

        def slow(images: torch.Tensor) -> tuple[torch.Tensor]:
            return (self.vision_tower(images),)

        (features,) = self.core.run(self, lambda engine: (engine.features(images),), slow, (images,))
        return features


@unit
class ShallowUViTEncoder(uvit.LatentEncoder):
    """Latents z (B, c, H, W) at times t (B,) -> (x (B, C, h, w), t_emb (B, D), hs). hs is a list that holds x for the
    decoder."""

    def __init__(self, config: JanusFlowConfig, core: Core) -> None:
        super().__init__(config.gen_encoder)
        self.core, self.latent_size = core, config.latent_size

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, timesteps: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor, list[torch.Tensor]]:
        t = timesteps.flatten()
        if len(t) != len(x):
            raise InputError(f"timesteps: expected one for each of {len(x)} latents, got {len(t)}")
        encoded, t_emb = self.core.run(
            self, lambda engine: engine.encode(x, t), super().forward, (x, t), _other_size(x, self.latent_size)
        )
        return encoded, t_emb, [encoded]


@unit
class ShallowUViTDecoder(uvit.VelocityDecoder):
    """Aligned hidden states (B, C, h, w), hs from the encoder, and t_emb (B, D) -> velocity (B, c, H, W). Removes the x
    of the encoder from hs."""

    def __init__(self, config: JanusFlowConfig, core: Core) -> None:
        super().__init__(config.gen_decoder)
        self.core, self.grid = core, config.grid

    def forward(  # type: ignore[override]
        self, x: torch.Tensor, hs: Sequence[torch.Tensor], t_emb: torch.Tensor
    ) -> torch.Tensor:
        if len(hs) != 1:
            raise InputError(
                f"hs: expected the one tensor that vision_gen_enc_model put there, got {len(hs)}; the decoder removes "
                "it from the list, so pass the hs of each step to one call, or pass list(hs)"
            )
        skip = hs.pop() if isinstance(hs, list) else hs[0]
        reference = super().forward

        def fast(engine: Engine) -> tuple[torch.Tensor]:
            return (engine.decode(x, skip, t_emb),)

        def slow(x: torch.Tensor, skip: torch.Tensor, t_emb: torch.Tensor) -> tuple[torch.Tensor]:
            return (reference(x, skip, t_emb),)

        (velocity,) = self.core.run(self, fast, slow, (x, skip, t_emb), _other_size(x, self.grid))
        return velocity


def _other_size(x: torch.Tensor, size: int) -> str | None:
    sides = tuple(x.shape[2:])
    got = " x ".join(map(str, sides))
    return None if sides == (size, size) else f"the engine takes {size} x {size}, got {got}"
