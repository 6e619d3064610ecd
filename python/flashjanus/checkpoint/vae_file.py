"""Derives the config of a VAE that is a single file of weights without config.json, from tensor names and shapes."""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from flashjanus.checkpoint.sources import TensorInfo
from flashjanus.checkpoint.vae_layout import compvis_name
from flashjanus.errors import CheckpointError

SDXL = {"norm_num_groups": 32, "scaling_factor": 0.13025}
"""Values that shapes do not tell, taken from the VAE that JanusFlow was trained with."""


def config_of(infos: Mapping[str, TensorInfo], label: str) -> dict[str, Any]:
    """config.json of the AutoencoderKL with these tensors, named as in diffusers or as in the code that trained it.
    Groups and scaling factor are SDXL's. Raises CheckpointError."""
    found = [re.match(r"decoder\.(up_blocks|up)\.(\d+)\.(?:resnets|block)\.(\d+)\.", name) for name in infos]
    blocks = [match for match in found if match is not None]
    if not blocks:
        first = ", ".join(list(infos)[:3])
        raise CheckpointError(f"{label}: expected the tensors of an AutoencoderKL, such as decoder.up..., got {first}")
    count = 1 + max(int(match[2]) for match in blocks)
    trained = blocks[0][1] == "up"

    def shape(name: str) -> tuple[int, ...]:
        stored = compvis_name(name, count) if trained else name
        if stored not in infos or not infos[stored].shape:
            raise CheckpointError(f"{label}: expected the tensor {stored}, which every VAE has, got none")
        return infos[stored].shape

    widths = [shape(f"decoder.up_blocks.{i}.resnets.0.conv2.weight")[0] for i in range(count)][::-1]
    return {
        "_class_name": "AutoencoderKL",
        "in_channels": shape("encoder.conv_in.weight")[1] if "encoder.conv_in.weight" in infos else 3,
        "out_channels": shape("decoder.conv_out.weight")[0],
        "latent_channels": shape("decoder.conv_in.weight")[1],
        "block_out_channels": widths,
        "down_block_types": ["DownEncoderBlock2D"] * count,
        "up_block_types": ["UpDecoderBlock2D"] * count,
        "layers_per_block": max(int(match[3]) for match in blocks),
        "act_fn": "silu",
        "use_quant_conv": "quant_conv.weight" in infos,
        "use_post_quant_conv": "post_quant_conv.weight" in infos,
        "mid_block_add_attention": any(name.startswith(("decoder.mid_block.att", "decoder.mid.att")) for name in infos),
        **SDXL,
    }
