"""config.json of the VAE (diffusers AutoencoderKL layout), with diffusers' defaults."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashjanus.checkpoint.config import MAX_WIDTH, JanusFlowConfig
from flashjanus.checkpoint.fields import Fields, raise_problems
from flashjanus.disk.reading import read_json
from flashjanus.errors import ConfigError


@dataclass(frozen=True)
class VaeConfig:
    """Decoder half of an AutoencoderKL: latents (latent_channels, L, L) -> image (out_channels, L*scale, L*scale)."""

    latent_channels: int = 4
    out_channels: int = 3
    block_out_channels: tuple[int, ...] = (64,)
    layers_per_block: int = 1
    norm_num_groups: int = 32
    scaling_factor: float = 0.18215
    use_post_quant_conv: bool = True
    mid_block_add_attention: bool = True

    def __post_init__(self) -> None:
        odd = [width for width in self.block_out_channels if width % self.norm_num_groups]
        if odd:
            raise ConfigError(
                f"VAE config.json: norm_num_groups: expected a divisor of every width in block_out_channels "
                f"{list(self.block_out_channels)}, got {self.norm_num_groups}"
            )

    @property
    def scale(self) -> int:
        """Image pixels per latent pixel, along one side."""
        return int(2 ** (len(self.block_out_channels) - 1))

    @classmethod
    def from_dict(cls, data: Mapping[str, Any]) -> VaeConfig:
        problems: list[str] = []
        f = Fields(data, "", problems)
        f.refuse_unless("_class_name", ["AutoencoderKL"], "other autoencoders compute something else")
        f.refuse_unless("act_fn", ["silu", "swish"], "GroupNorm is followed by SiLU")
        f.refuse_unless("shift_factor", [0, 0.0], "latents are scaled, not shifted")
        for key in ("latents_mean", "latents_std"):
            f.refuse_unless(key, [None], "latents are scaled by scaling_factor alone")
        widths = f.sizes("block_out_channels", (64,), MAX_WIDTH)
        if len(widths) > 8:
            f.bad("block_out_channels", "at most 8 resolutions")
        blocks = data.get("up_block_types", ["UpDecoderBlock2D"])
        if not isinstance(blocks, (list, tuple)) or set(map(str, blocks)) != {"UpDecoderBlock2D"}:
            f.bad("up_block_types", 'a list of "UpDecoderBlock2D" (the only block that is computed)', got=blocks)
        elif len(blocks) != len(widths):
            f.bad("up_block_types", f"one block per width in block_out_channels ({len(widths)})", got=blocks)
        values: dict[str, Any] = {
            "latent_channels": f.size("latent_channels", 4, MAX_WIDTH),
            "out_channels": f.size("out_channels", 3, MAX_WIDTH),
            "block_out_channels": widths,
            "layers_per_block": f.size("layers_per_block", 1, 64),
            "norm_num_groups": f.size("norm_num_groups", 32, MAX_WIDTH),
            "scaling_factor": f.number("scaling_factor", 0.18215),
            "use_post_quant_conv": f.flag("use_post_quant_conv", True),
            "mid_block_add_attention": f.flag("mid_block_add_attention", True),
        }
        raise_problems("VAE config.json", problems)
        return cls(**values)

    @classmethod
    def from_file(cls, path: str | Path) -> VaeConfig:
        return cls.from_dict(read_json(Path(path), ConfigError))

    def check_fits(self, config: JanusFlowConfig) -> None:
        """Raise ConfigError unless this VAE decodes the latents that `config` draws, into RGB."""
        channels = config.gen_decoder.out_channels
        if self.latent_channels != channels:
            raise ConfigError(
                f"VAE latent_channels: expected {channels} as in vision_gen_dec_config.params.out_channels, "
                f"got {self.latent_channels}; this VAE belongs to another model"
            )
        if self.out_channels != 3:
            raise ConfigError(f"VAE out_channels: expected 3 (RGB), got {self.out_channels}")
