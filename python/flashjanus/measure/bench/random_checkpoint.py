"""Writes a checkpoint of random weights in the official layout, to try everything that loads one without a download."""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

import torch
from safetensors.torch import save_file
from torch import nn

from flashjanus.builtin import builtin_folder
from flashjanus.checkpoint import JanusFlowConfig, TensorInfo
from flashjanus.checkpoint.write import SHARD_BYTES, Shards
from flashjanus.compat import checkpoints
from flashjanus.compat.diffusers import AutoencoderKL
from flashjanus.compat.janusflow import MultiModalityCausalLM
from flashjanus.disk.writing import new_folder, write_json
from flashjanus.engine.runtime.isolation import callers_state
from flashjanus.measure.bench.models import configs, seeded_tensor

DTYPE = torch.bfloat16
Shapes = Mapping[str, tuple[int, ...]]


def shapes_of(size: str) -> tuple[Shapes, Shapes]:
    """The shape of each tensor of a model size and of its VAE, by its official name. Raises InputError."""
    config, vae = configs(size)
    modules: list[nn.Module] = [
        checkpoints.empty(MultiModalityCausalLM, config),
        checkpoints.empty(lambda fields: AutoencoderKL(**fields), vae),
    ]
    first, second = ({name: tuple(p.shape) for name, p in module.named_parameters()} for module in modules)
    return first, second


def write_random_checkpoint(
    folder: Path,
    size: str,
    *,
    progress: Callable[[int], None] = lambda done: None,
    shard_bytes: int = SHARD_BYTES,
) -> int:
    """Write the model of `random_model(size)` in bfloat16 with its VAE, tokenizer, and processor; return its bytes.

    The tokenizer is the built-in model's, whose ids are all in the vocabulary. `folder` must be empty or absent and is
    written completely or not at all; memory holds one tensor at a time. progress: called with the number of tensors
    done. Raises InputError, OutputError.
    """
    config, vae = configs(size)
    shapes, vae_shapes = shapes_of(size)
    infos = {name: TensorInfo(shape, "bfloat16", math.prod(shape) * DTYPE.itemsize) for name, shape in shapes.items()}
    with new_folder(folder) as partial:
        shards = Shards(partial, infos, shard_bytes)
        for done, (name, shape) in enumerate(shapes.items(), 1):
            shards.write(name, seeded_tensor(name, shape, DTYPE))
            with callers_state():
                progress(done)
        (partial / "vae").mkdir()
        state = {name: seeded_tensor(name, shape, DTYPE) for name, shape in vae_shapes.items()}
        save_file(state, partial / "vae/diffusion_pytorch_model.safetensors", metadata={"format": "pt"})
        write_json(partial / "vae/config.json", vae)
        _write_inputs(partial, JanusFlowConfig.from_dict(config))
        write_json(partial / "config.json", config)
    return sum(info.nbytes for info in infos.values())


def _write_inputs(folder: Path, config: JanusFlowConfig) -> None:
    """Write the files of the tokenizer and of the processor."""
    source = builtin_folder("shapes")
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copyfile(source / name, folder / name)
    changed = {
        "processor_config.json": {"num_image_tokens": config.num_understanding_tokens},
        "preprocessor_config.json": {"image_size": config.understanding.image_size},
    }
    for name, fields in changed.items():
        write_json(folder / name, {**json.loads((source / name).read_text(encoding="utf-8")), **fields})
