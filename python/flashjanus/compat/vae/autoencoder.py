"""diffusers' AutoencoderKL, which decodes on the engine and encodes on torch."""

from __future__ import annotations

import os
import warnings
import weakref
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import save
from torch import nn
from typing_extensions import Self

from flashjanus.checkpoint import VaeConfig, VaeFiles
from flashjanus.compat.core import unit
from flashjanus.compat.outputs import Config, Output
from flashjanus.compat.processing.folders import hub_options
from flashjanus.compat.vae.core import VaeCore
from flashjanus.compat.vae.gaussian import DiagonalGaussianDistribution
from flashjanus.compat.vae.loading import files_of, state_of
from flashjanus.compat.vae.modules import Decoder, Encoder
from flashjanus.disk.writing import whole, write_json
from flashjanus.errors import ConfigError, InputError

DEFAULTS: dict[str, Any] = {
    "_class_name": "AutoencoderKL",
    "in_channels": 3,
    "out_channels": 3,
    "block_out_channels": [64],
    "layers_per_block": 1,
    "act_fn": "silu",
    "latent_channels": 4,
    "norm_num_groups": 32,
    "sample_size": 32,
    "scaling_factor": 0.18215,
    "shift_factor": None,
    "latents_mean": None,
    "latents_std": None,
    "force_upcast": True,
    "use_quant_conv": True,
    "use_post_quant_conv": True,
    "mid_block_add_attention": True,
}
WITHOUT_EFFECT = ("use_safetensors", "low_cpu_mem_usage", "variant", "torch_dtype", "ignore_mismatched_sizes")


@unit
class AutoencoderKL(nn.Module):
    """Encodes images to latents and decodes latents to images, for code that was written for diffusers.

    `decode` runs on the engine if that gives the same result (see `ReferencePathWarning`), and `encode` on torch. A
    VAE in float16 decodes in float32, because the decoder overflows in float16.
    """

    def __init__(self, **config: Any) -> None:
        """Make a VAE with untrained weights. config: the fields of diffusers' config.json. Raises `ConfigError`."""
        super().__init__()
        values = {**DEFAULTS, **config}
        blocks = len(values["block_out_channels"]) if isinstance(values["block_out_channels"], list | tuple) else 1
        values.setdefault("down_block_types", ["DownEncoderBlock2D"] * blocks)
        values.setdefault("up_block_types", ["UpDecoderBlock2D"] * blocks)
        parsed = self.parsed = VaeConfig.from_dict(values)
        if set(values["down_block_types"]) != {"DownEncoderBlock2D"} or len(values["down_block_types"]) != blocks:
            raise ConfigError(
                f"down_block_types: expected {blocks} DownEncoderBlock2D, got {values['down_block_types']}"
            )
        self.config = Config(values)
        widths, layers, groups = parsed.block_out_channels, parsed.layers_per_block, parsed.norm_num_groups
        latent, attention = parsed.latent_channels, parsed.mid_block_add_attention
        self.encoder: Encoder | None = Encoder(values["in_channels"], 2 * latent, widths, layers, groups, attention)
        self.decoder = Decoder(latent, parsed.out_channels, widths, layers, groups, attention)
        self.quant_conv = nn.Conv2d(2 * latent, 2 * latent, 1) if values["use_quant_conv"] else None
        self.post_quant_conv = nn.Conv2d(latent, latent, 1) if parsed.use_post_quant_conv else None
        self.core = VaeCore()
        self._link()

    def _link(self) -> None:
        own = weakref.ref(self)

        def root() -> tuple[nn.Module, VaeConfig] | None:
            vae = own()
            return None if vae is None else (vae, vae.parsed)

        self.core.link(root)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a copy its own engine."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.core = VaeCore()
        self._link()

    @classmethod
    def from_pretrained(
        cls, pretrained_model_name_or_path: str | os.PathLike[str], *, subfolder: str | None = None, **options: Any
    ) -> Self:
        """Load a VAE, in eval mode, from a folder in diffusers' layout, a hub id, or one file of weights. The folder or
        hub id of a JanusFlow model stands for the VAE that `JanusFlow.from_pretrained` uses with it.

        torch_dtype: the dtype of the parameters (default float32). options: revision, cache_dir, local_files_only, and
        token for the hub, and fields of the config, which override the file. Raises `CheckpointError`, `ConfigError`.
        """
        return cls._load(files_of(pretrained_model_name_or_path, subfolder, hub_options(options)), options)

    @classmethod
    def from_single_file(cls, pretrained_model_link_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load a VAE from one file of weights, such as sdxl_vae.safetensors, under diffusers' names or those of the
        code that trained it. Such a file does not hold norm_num_groups and scaling_factor, which are SDXL's (32 and
        0.13025) unless they are given as options or by config=, a mapping, or a folder or hub id with a config.json.
        Raises `CheckpointError`, `ConfigError`.
        """
        hub = hub_options(options)
        files = files_of(pretrained_model_link_or_path, None, {})
        config = options.pop("config", None)
        if config is not None and not isinstance(config, Mapping):
            config = files_of(config, None, hub).config_dict
        return cls._load(files, options, config)

    @classmethod
    def _load(cls, files: VaeFiles, options: dict[str, Any], config: Mapping[str, Any] | None = None) -> Self:
        dtype = options.get("torch_dtype") or torch.float32
        if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
            raise InputError(f"torch_dtype: expected a floating-point torch.dtype, got {dtype!r}")
        given = {name: value for name, value in options.items() if name not in WITHOUT_EFFECT}
        unknown = [
            name for name in given if name not in {*DEFAULTS, "down_block_types", "up_block_types"} and name[0] != "_"
        ]
        if unknown:
            raise InputError(f"AutoencoderKL: unknown options {', '.join(unknown)}; known: {', '.join(DEFAULTS)}")
        with torch.device("meta"):
            vae = cls(**{**(files.config_dict if config is None else config), **given})
        state = state_of(vae, files.weights, len(vae.parsed.block_out_channels))
        if not any(name.startswith("encoder.") for name in state):
            vae.encoder = vae.quant_conv = None
        vae.load_state_dict({name: tensor.to("cpu", dtype, copy=True) for name, tensor in state.items()}, assign=True)
        files.weights.close()
        return vae.eval()

    def save_pretrained(self, save_directory: str | os.PathLike[str], **_: Any) -> None:
        """Write config.json and diffusion_pytorch_model.safetensors, which `from_pretrained` reads. Raises
        `OutputError`."""
        folder = Path(save_directory)
        folder.mkdir(parents=True, exist_ok=True)
        state = {name: tensor.detach().contiguous() for name, tensor in self.state_dict().items()}
        with whole(folder / "diffusion_pytorch_model.safetensors") as file:
            file.write(save(state, metadata={"format": "pt"}))
        write_json(folder / "config.json", self.config.to_dict())

    @property
    def device(self) -> torch.device:
        return self.decoder.conv_in.weight.device

    @property
    def dtype(self) -> torch.dtype:
        return self.decoder.conv_in.weight.dtype

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: object = None) -> Any:
        """Decode latents (B, c, H, W) that were divided by the scaling factor. `.sample` or [0] of the result are
        images (B, 3, s H, s W), about [-1, 1], where s is what the decoder scales by (8 for SDXL's)."""
        channels = self.parsed.latent_channels
        if z.ndim != 4 or z.shape[1] != channels or 0 in z.shape:
            raise InputError(f"z: expected latents (B, {channels}, H, W), got {tuple(z.shape)}")

        (image,) = self.core.run(self, lambda engine: (engine.decode(z).to(z.device, z.dtype),), self._decoded, (z,))
        return Output(sample=image) if return_dict else (image,)

    def _decoded(self, z: torch.Tensor) -> tuple[torch.Tensor]:
        """Decode on the torch modules."""
        x = z
        for part in (self.post_quant_conv, self.decoder):
            if part is not None and self.dtype is torch.float16:
                wide = {name: parameter.float() for name, parameter in part.named_parameters()}
                x = torch.func.functional_call(part, wide, (x.float(),))
            elif part is not None:
                x = part(x)
        return (x.to(z.dtype),)

    def encode(self, x: torch.Tensor, return_dict: bool = True) -> Any:
        """Encode images (B, 3, H, W) in [-1, 1]. `.latent_dist` or [0] of the result is the distribution of their
        latents; multiply its samples by the scaling factor. H and W must be multiples of what the encoder scales by."""
        scale, channels = self.parsed.scale, self.config["in_channels"]
        if self.encoder is None:
            raise InputError("encode: this VAE was loaded from weights without an encoder")
        if x.ndim != 4 or x.shape[1] != channels or any(side % scale or not side for side in x.shape[2:]):
            raise InputError(
                f"x: expected images (B, {channels}, H, W), H and W multiples of {scale}, got {tuple(x.shape)}"
            )
        moments = self.encoder(x)
        moments = moments if self.quant_conv is None else self.quant_conv(moments)
        found = DiagonalGaussianDistribution(moments)
        return Output(latent_dist=found) if return_dict else (found,)

    def forward(
        self,
        sample: torch.Tensor,
        sample_posterior: bool = False,
        return_dict: bool = True,
        generator: torch.Generator | None = None,
    ) -> Any:
        """Encode images and decode them again, from the mean of the distribution or from a sample."""
        found = self.encode(sample).latent_dist
        return self.decode(found.sample(generator) if sample_posterior else found.mode(), return_dict)

    def enable_slicing(self) -> None:
        """Do nothing: pictures are decoded one by one."""

    def disable_slicing(self) -> None:
        """Do nothing: pictures are decoded one by one."""

    def enable_tiling(self, use_tiling: bool = True) -> None:
        """Do nothing but warn: a picture is decoded whole, without seams."""
        if use_tiling:
            warnings.warn("AutoencoderKL: tiling has no effect; each picture is decoded whole", stacklevel=2)

    def disable_tiling(self) -> None:
        """Do nothing: a picture is decoded whole."""
