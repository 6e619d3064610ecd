"""The parts of a pipeline (VAE, image processor, tokenizer) under the names of diffusers and transformers."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import asdict, dataclass
from typing import Any, NoReturn

import torch

from flashjanus.api.janusflow import JanusFlow
from flashjanus.api.outputs import of_type
from flashjanus.checkpoint import JanusFlowConfig, VaeConfig
from flashjanus.compat.outputs import Config
from flashjanus.compat.pipeline import absent
from flashjanus.compat.processing.tokenizer import ChatTokenizer
from flashjanus.errors import AbsentError
from flashjanus.inputs.tokenizer import Tokenizer
from flashjanus.sampling import checks


@dataclass(frozen=True)
class Decoded:
    """sample: images (B, 3, H, W), float32, about [-1, 1]."""

    sample: torch.Tensor


class PipelineVae:
    """The decoder of diffusers' AutoencoderKL: `decode(latents / vae.config.scaling_factor).sample`."""

    def __init__(self, model: JanusFlow, config: VaeConfig, no_op: Callable[[str], Any]) -> None:
        self._model, self._no_op = model, no_op
        self.config = Config({**asdict(config), "shift_factor": None, "force_upcast": False})
        self.device = model.device
        self.dtype = model.runner.vae_policy.matrix

    def decode(self, z: torch.Tensor, return_dict: bool = True, generator: object = None) -> Decoded | tuple[Any]:
        """Decode latents (B, c, H, W) that were divided by the scaling factor. `generator` is not used.
        Raises InputError."""
        z = checks.tensor("z", z, (None, self.config.latent_channels, None, None), checks.FLOATS)
        images = self._model.decode_latents(z.float() * self.config.scaling_factor)
        return Decoded(images) if return_dict else (images,)

    def __getattr__(self, name: str) -> Any:
        if f"{name.partition('_')[0]}_vae_{name.partition('_')[2]}" in absent.NO_OPS:  # enable_tiling, ...
            return self._no_op(name)
        return _absent(
            "vae", name, "it decodes latents on the engine, is no torch module, and cannot encode; pipe.to moves it"
        )


class PipelineImageProcessor:
    """Converts decoded images to the output types, as diffusers' VaeImageProcessor does."""

    def postprocess(self, image: torch.Tensor, output_type: str = "pil") -> Any:
        """Convert images (B, 3, H, W), about [-1, 1], to "pil", "np", or "pt"; "latent" returns them unchanged. Raises
        InputError."""
        checks.choice("output_type", output_type, ("pil", "np", "pt", "latent"))
        checks.tensor("image", image, (None, 3, None, None), checks.FLOATS)
        return image if output_type == "latent" else of_type(image.detach().float(), output_type)

    def __getattr__(self, name: str) -> NoReturn:
        _absent("image_processor", name, "it only postprocesses decoded images, because JanusFlow edits none")


def chat_tokenizer(tokenizer: Tokenizer, config: JanusFlowConfig) -> ChatTokenizer:
    """A copy of a model's tokenizer with transformers' names. Changing the copy does not affect the model."""
    backend = tokenizer.copied_backend()
    bos, eos, pad = map(backend.id_to_token, (tokenizer.bos_id, tokenizer.eos_id, tokenizer.pad_id))
    return ChatTokenizer(
        backend,
        bos_token=bos,
        eos_token=eos,
        pad_token=pad,
        add_bos_token=tokenizer.adds_bos,
        model_max_length=config.language.max_position_embeddings,
    )


def _absent(part: str, name: str, reason: str) -> NoReturn:
    raise AbsentError(f"JanusFlowPipeline.{part} has no {name}: {reason}")
