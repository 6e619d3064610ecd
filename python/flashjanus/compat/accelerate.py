"""`accelerate`: an engine for a model that the program has loaded already."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import tokenizers
from torch import nn

from flashjanus.api.janusflow import JanusFlow
from flashjanus.checkpoint import JanusFlowConfig, VaeConfig
from flashjanus.checkpoint.names import with_tied_head
from flashjanus.compat import sharing
from flashjanus.compat.checkpoints import as_mapping
from flashjanus.compat.core import Core
from flashjanus.compat.engine import Engine
from flashjanus.engine.ops import all_ops
from flashjanus.errors import InputError
from flashjanus.inputs.images import ImageProcessor
from flashjanus.inputs.tokenizer import ProcessorConfig, Tokenizer


class Accelerated(JanusFlow):
    """A JanusFlow in the memory of a torch model. `report` says which parameters are shared and which were copied."""

    report: sharing.Shared


def accelerate(
    vl_gpt: nn.Module,
    vae: nn.Module | None = None,
    processor: Any = None,
    *,
    tiles: bool = True,
    implementations: Mapping[str, Any] | None = None,
    **options: Any,
) -> Accelerated:
    """Make a JanusFlow from loaded objects, in the dtype and on the device of vl_gpt.

    vl_gpt: the official MultiModalityCausalLM, or any module with its config and parameters. vae: diffusers'
    AutoencoderKL, without which no images can be drawn. processor: the official VLChatProcessor, without which prompts
    and conversations have to be token ids.

    The objects stay usable. Where dtype and layout allow it, their parameters and the engine's weights share memory;
    `report` of the result says what is shared and what was copied. Call this again after changing parameters.

    tiles: on a CPU with AMX the engine keeps the weights of bfloat16 linears in tiles, an order that no torch module
    can share. With False, these weights are shared as well, and the engine is slower there. options: numerics,
    cuda_graphs, and buckets, as in JanusFlow.from_pretrained.

    Raises CheckpointError, ConfigError, DeviceError, InputError.
    """
    unknown = sorted(set(options) - {"numerics", "cuda_graphs", "buckets"})
    if unknown:
        raise InputError(f"{unknown[0]}: unknown option, expected numerics, cuda_graphs or buckets")
    if not isinstance(vl_gpt, nn.Module) or not hasattr(vl_gpt, "config"):
        raise InputError(
            f"vl_gpt: expected a torch module with the official model's config, got {type(vl_gpt).__name__}"
        )
    vae_config: Any = getattr(vae, "config", {})
    names = (name for name, _ in vl_gpt.named_parameters(remove_duplicate=False))
    tied = getattr(vl_gpt, "language_model", None)
    config = JanusFlowConfig.from_dict(with_tied_head(_config(vl_gpt.config, tied), names))
    if implementations is None and not tiles:
        implementations = {"linear": tuple(all_ops()["linear"].implementations)}
    model, shared = sharing.engine_of(
        Accelerated,
        vl_gpt,
        config,
        vae=None if vae is None else (vae, VaeConfig.from_dict(dict(vae_config))),
        tokenizer=None if processor is None else tokenizer_of(processor),
        processor=None if processor is None else image_processor_of(processor),
        name=type(vl_gpt).__name__,
        implementations=implementations,
        **options,
    )
    model.report = shared
    core = getattr(vl_gpt, "core", None)
    if isinstance(core, Core):
        core.adopt(Engine(model), shared)
    return model


def _config(given: Any, language_model: Any) -> dict[str, Any]:
    """The config.json of a loaded model. Its parameters show whether the head is tied."""
    data = dict(as_mapping(given))
    head = getattr(getattr(language_model, "lm_head", None), "weight", None)
    embedding = getattr(getattr(getattr(language_model, "model", None), "embed_tokens", None), "weight", None)
    data.pop("tie_word_embeddings", None)
    language = dict(data.get("language_config") or {})
    data["language_config"] = {**language, "tie_word_embeddings": head is not None and head is embedding}
    return data


def tokenizer_of(processor: Any) -> Tokenizer:
    """A tokenizer like that of a loaded processor, which stays unchanged. Raises ConfigError, InputError."""
    theirs = getattr(processor, "tokenizer", None)
    backend = getattr(theirs, "backend_tokenizer", None)
    if backend is None:
        raise InputError(
            f"processor: expected a fast tokenizer, one of the `tokenizers` library, got {type(theirs).__name__}"
        )
    names = [name for name in ProcessorConfig.__dataclass_fields__ if hasattr(processor, name)]
    settings = ProcessorConfig.from_dict({name: getattr(processor, name) for name in names}, "processor")
    config = {name: getattr(theirs, name) for name in ("bos_token", "eos_token") if getattr(theirs, name, None)}
    config["add_bos_token"] = bool(getattr(theirs, "add_bos_token", True))
    return Tokenizer(tokenizers.Tokenizer.from_str(backend.to_str()), settings, config, {}, "processor.tokenizer")


def image_processor_of(processor: Any) -> ImageProcessor | None:
    """The image settings of a loaded processor, or None if it has none."""
    theirs = getattr(processor, "image_processor", None)
    if getattr(theirs, "image_size", None) is None:
        return None
    found: dict[str, Any] = {}
    for name in ImageProcessor.__dataclass_fields__:
        value = getattr(theirs, name, None)
        if value is not None:
            found[name] = tuple(value) if isinstance(value, (list, tuple)) else value
    return ImageProcessor(**found)
