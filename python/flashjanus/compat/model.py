"""The official model class `MultiModalityCausalLM`: torch modules with its names and structure."""

from __future__ import annotations

import os
import weakref
from collections.abc import Mapping
from typing import Any, ClassVar

import torch
from torch import nn
from typing_extensions import Self

from flashjanus.checkpoint import JanusFlowConfig
from flashjanus.compat import checkpoints
from flashjanus.compat.core import Core
from flashjanus.compat.language import LlamaForCausalLM
from flashjanus.compat.modules.uvit import RMSNorm
from flashjanus.compat.outputs import Config
from flashjanus.compat.units import CLIPVisionTower, ShallowUViTDecoder, ShallowUViTEncoder
from flashjanus.errors import InputError


class MultiModalityCausalLM(nn.Module):
    """JanusFlow with the modules, names, and calls of the official code.

    A call runs on the engine if that gives the same result: in eval mode, without hooks or replaced modules inside, in
    float32, bfloat16, or float16. Other calls run on the modules, after one ReferencePathWarning that gives the reason.
    Gradients always come from the modules.
    """

    config_class: ClassVar[Any]
    """transformers' config class, set when this class is registered with its Auto classes."""

    def __init__(self, config: Mapping[str, Any] | JanusFlowConfig | Any) -> None:
        """config: the contents of config.json, as a mapping or an object with to_dict(). The weights are initialized by
        torch. Raises ConfigError."""
        super().__init__()
        self.config = Config(checkpoints.as_mapping(config))
        parsed = JanusFlowConfig.from_dict(self.config.to_dict())
        self._parsed = parsed
        language, hidden = parsed.language, parsed.language.hidden_size
        core = self.core = Core()
        self.vision_und_enc_model = CLIPVisionTower(parsed, core)
        self.vision_und_enc_aligner = nn.Linear(parsed.understanding.width, hidden)
        self.beg_of_und_embed = nn.Parameter(torch.zeros(1, hidden))
        self.vision_gen_enc_model = ShallowUViTEncoder(parsed, core)
        self.vision_gen_enc_aligner = nn.Linear(parsed.gen_encoder.channels, hidden)
        self.vision_gen_dec_model = ShallowUViTDecoder(parsed, core)
        shown = Config({**checkpoints.language_defaults(language), **self.config.get("language_config", {})})
        self.language_model = LlamaForCausalLM(parsed, shown, core)
        self.vision_gen_dec_aligner_norm = RMSNorm(hidden, language.rms_norm_eps)
        self.vision_gen_dec_aligner = nn.Linear(hidden, parsed.gen_decoder.in_channels)
        self._link()

    def _link(self) -> None:
        own = weakref.ref(self)

        def root() -> tuple[nn.Module, JanusFlowConfig] | None:
            model = own()
            return None if model is None else (model, model._parsed)

        for module in self.modules():
            if isinstance(getattr(module, "core", None), Core):
                module.core = self.core  # type: ignore[assignment]
        self.core.link(root)

    def __setstate__(self, state: dict[str, Any]) -> None:
        """Give a copy its own engine."""
        super().__setstate__(state)  # type: ignore[no-untyped-call]
        self.core = Core()
        self._link()

    @classmethod
    def from_pretrained(cls, pretrained_model_name_or_path: str | os.PathLike[str], **options: Any) -> Self:
        """Load a folder in the official layout, a hub id, or "shapes", in eval mode.

        torch_dtype (or dtype): the dtype of the parameters, by default the checkpoint's own. device_map: a device.
        config: replaces config.json. language_config, trust_remote_code, attn_implementation, and other options of
        transformers are accepted and have no effect. Raises CheckpointError, ConfigError, InputError.
        """
        return checkpoints.load(cls, pretrained_model_name_or_path, options)

    @classmethod
    def _from_config(cls, config: Any, **options: Any) -> Self:
        """For `AutoModelForCausalLM.from_config`: weights initialized by torch, in torch_dtype (or dtype)."""
        return cls(config).to(options.get("dtype") or options.get("torch_dtype"))

    def save_pretrained(self, save_directory: str | os.PathLike[str], **options: Any) -> None:
        """Write config.json and model.safetensors, which from_pretrained reads. Raises OutputError."""
        checkpoints.save(self, save_directory)

    @property
    def device(self) -> torch.device:
        return self.beg_of_und_embed.device

    @property
    def dtype(self) -> torch.dtype:
        return self.beg_of_und_embed.dtype

    def get_input_embeddings(self) -> nn.Module:
        return self.language_model.get_input_embeddings()

    def num_parameters(self, only_trainable: bool = False) -> int:
        return sum(p.numel() for p in self.parameters() if p.requires_grad or not only_trainable)

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        self.language_model.gradient_checkpointing_enable(gradient_checkpointing_kwargs)

    def gradient_checkpointing_disable(self) -> None:
        self.language_model.gradient_checkpointing_disable()

    def prepare_inputs_embeds(
        self,
        input_ids: torch.Tensor,
        pixel_values: torch.Tensor,
        images_seq_mask: torch.Tensor,
        images_emb_mask: torch.Tensor,
        **kwargs: Any,
    ) -> torch.Tensor:
        """Return the embeddings (b, T, D) of input_ids (b, T), with those of the images where images_seq_mask (b, T) is
        true.

        pixel_values: (b, n, 3, S, S). images_emb_mask: (b, n, 1 + N), true for those of an image's begin embedding and
        N features that take a place. Raises InputError.
        """
        if pixel_values.dim() != 5:
            raise InputError(f"pixel_values: expected (b, n, 3, S, S), got {list(pixel_values.shape)}")
        images = pixel_values.flatten(0, 1).to(self.device, self.dtype)
        places, used = images_seq_mask.bool(), images_emb_mask.bool().flatten(1)
        if int(places.sum()) != int(used.sum()):
            raise InputError(
                f"images_seq_mask, images_emb_mask: expected as many places as embeddings, got {int(places.sum())} "
                f"places and {int(used.sum())} embeddings"
            )
        embeds: torch.Tensor = self.language_model.get_input_embeddings()(input_ids.clamp(min=0))
        if not len(images) or not bool(used.any()):
            return embeds
        features = self.vision_und_enc_aligner(self.vision_und_enc_model(images))
        begin = self.beg_of_und_embed.detach().expand(len(images), 1, -1)
        shown = torch.cat([begin, features], 1).view(len(input_ids), -1, features.shape[-1])
        embeds = embeds.clone()
        embeds[places] = shown[used].to(embeds.dtype)
        return embeds
