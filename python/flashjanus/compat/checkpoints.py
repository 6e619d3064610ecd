"""Loads torch modules from folders in the official layout, and saves them there."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import torch
from safetensors.torch import save_file
from torch import nn
from torch.overrides import TorchFunctionMode

from flashjanus.builtin import NAMES, builtin_folder
from flashjanus.checkpoint import Checkpoint, JanusFlowConfig, LanguageConfig, weight_layout
from flashjanus.checkpoint.load import mismatch
from flashjanus.checkpoint.names import with_tied_head
from flashjanus.errors import CheckpointError, InputError, OutputError

M = TypeVar("M", bound=nn.Module)
TAKEN = frozenset(
    {"trust_remote_code", "language_config", "attn_implementation", "_attn_implementation", "local_files_only"}
    | {"low_cpu_mem_usage", "use_safetensors", "use_flash_attention_2", "cache_dir", "token", "use_auth_token"}
    | {"ignore_mismatched_sizes", "output_loading_info", "force_download", "resume_download", "proxies", "variant"}
    | {
        "quantization_config",
        "code_revision",
        "weights_only",
        "offload_folder",
        "max_memory",
        "_from_auto",
        "adapter_kwargs",
    }
)
"""Options of transformers that have no effect here. `load` refuses those that would need one."""


def as_mapping(config: Any) -> Mapping[str, Any]:
    """The contents of config.json, from a mapping or from an object with to_dict()."""
    if isinstance(config, Mapping):
        return config
    if not hasattr(config, "to_dict"):
        raise InputError(f"config: expected a mapping, or an object with to_dict(), got {type(config).__name__}")
    found = dict(config.to_dict())
    for name in ("language_config", "vision_und_enc_config", "vision_gen_enc_config", "vision_gen_dec_config"):
        section = found.get(name)
        if section is not None and not isinstance(section, Mapping):
            found[name] = section.to_dict()
    return {**found, "model_type": "multi_modality"}


def language_defaults(config: LanguageConfig) -> dict[str, Any]:
    """The language model's config, including the values that its section of config.json leaves out."""
    names = (
        *("hidden_size", "intermediate_size", "num_hidden_layers", "num_attention_heads", "num_key_value_heads"),
        *("head_dim", "vocab_size", "max_position_embeddings", "rms_norm_eps", "rope_theta", "tie_word_embeddings"),
    )
    return {"model_type": "llama", "use_cache": True, **{name: getattr(config, name) for name in names}}


def load(cls: Callable[[Any], M], source: str | os.PathLike[str], options: Mapping[str, Any]) -> M:
    """`MultiModalityCausalLM.from_pretrained`."""
    known = {"torch_dtype", "dtype", "config", "device_map", "revision"}
    unknown = sorted(set(options) - known - TAKEN)
    if unknown:
        raise InputError(f"{unknown[0]}: unknown option, from_pretrained takes {', '.join(sorted(known))}")
    if options.get("quantization_config") is not None:
        raise InputError(
            "quantization_config: not supported, because torch modules hold unquantized weights; leave it out: "
            "JanusFlow.from_pretrained(..., quantization='int8') runs in 8 bits"
        )
    folder = builtin_folder(str(source)) if source in NAMES else source
    checkpoint = Checkpoint.open(folder, revision=options.get("revision"))
    if checkpoint.config.quantization is not None:
        raise InputError(
            f"{source}: stored in {checkpoint.config.quantization}, which torch modules cannot hold: load the "
            "checkpoint that it was made from, or use JanusFlow.from_pretrained"
        )
    given = options.get("config")
    data = checkpoint.config_dict if given is None else as_mapping(given)
    weights = checkpoint.weights
    data = with_tied_head(data, weights.names())
    config = JanusFlowConfig.from_dict(data)
    problem = mismatch(weight_layout(config), weights)
    if problem is not None:
        raise CheckpointError(problem)
    model = empty(cls, data)
    dtype = _dtype(options.get("dtype", options.get("torch_dtype")))
    state = {name: weights.read(name) for name in weights.names()}
    usual = dtype or state["language_model.model.embed_tokens.weight"].dtype
    place = _device(options.get("device_map"))
    for name, parameter in model.named_parameters(remove_duplicate=False):
        if name in state:
            state[name] = state[name].to(place, usual).view(parameter.shape)
        elif ".attn_pool." in name:  # often missing from checkpoints, because nothing reads it
            state[name] = torch.zeros(parameter.shape, dtype=usual, device=place)
    named = dict(model.named_parameters(remove_duplicate=False))
    model.load_state_dict({name: tensor for name, tensor in state.items() if name in named}, strict=False, assign=True)
    if config.language.tie_word_embeddings:
        head, embedding = (model.get_submodule(f"language_model.{at}") for at in ("lm_head", "model.embed_tokens"))
        head.weight = embedding.weight
    absent = [name for name, parameter in model.named_parameters() if parameter.is_meta]
    if absent:
        raise CheckpointError(f"{source}: expected the tensor {absent[0]}, got none ({len(absent)} are missing)")
    weights.close()
    return model.eval()


def empty(cls: Callable[[Any], M], config: Any) -> M:
    """Make a model on the meta device: its parameters have shapes but no memory."""
    with torch.device("meta"), _Unwritten():
        return cls(config)


def save(model: Any, folder: str | os.PathLike[str]) -> None:
    """`MultiModalityCausalLM.save_pretrained`. Each file is written completely or not at all."""
    path = Path(folder)
    state = {name: tensor.detach().contiguous() for name, tensor in model.state_dict().items()}
    if model.language_model.lm_head.weight is model.language_model.model.embed_tokens.weight:
        del state["language_model.lm_head.weight"]
    try:
        path.mkdir(parents=True, exist_ok=True)
        weights, config = path / ".model.safetensors.part", path / ".config.json.part"
        save_file(state, weights, metadata={"format": "pt"})
        config.write_text(json.dumps(model.config.to_dict(), indent=1), encoding="utf-8")
        weights.replace(path / "model.safetensors")
        config.replace(path / "config.json")
    except OSError as error:
        raise OutputError(f"{path}: cannot be written: {error.strerror or error}") from error


class _Unwritten(TorchFunctionMode):
    """Leaves out the initialization of parameters, which on the meta device would import torch's compiler."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if getattr(func, "__name__", "") in ("uniform_", "normal_", "zero_", "fill_"):
            return next(iter((*args, *(kwargs or {}).values())))
        return func(*args, **(kwargs or {}))


def _dtype(given: Any) -> torch.dtype | None:
    if given is None or given == "auto":
        return None
    dtype = getattr(torch, given, None) if isinstance(given, str) else given
    if not isinstance(dtype, torch.dtype) or not dtype.is_floating_point:
        raise InputError(f"torch_dtype: expected a floating dtype such as torch.bfloat16, got {given!r}")
    return dtype


def _device(given: Any) -> torch.device:
    if given is None or given == "auto":
        return torch.device("cuda" if given == "auto" and torch.cuda.is_available() else "cpu")
    if isinstance(given, Mapping):
        places = set(given.values())
        if len(places) != 1:
            raise InputError(f"device_map: expected one device for the whole model, got {given!r:.80}")
        (given,) = places
    return torch.device(given)
