"""Loads the weights of an AutoencoderKL into its modules, under any of the names that files have for them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import nn

from flashjanus.builtin import NAMES, builtin_folder
from flashjanus.checkpoint import TensorSource, VaeFiles
from flashjanus.checkpoint.files import DEFAULT_VAE
from flashjanus.checkpoint.hub import fetch_repository, is_hub_id
from flashjanus.checkpoint.vae_layout import OLD_NAMES, compvis_name
from flashjanus.disk.paths import is_folder
from flashjanus.errors import CheckpointError

_STEM = "diffusion_pytorch_model"


def files_of(source: str | os.PathLike[str], subfolder: str | None, options: Mapping[str, Any]) -> VaeFiles:
    """Find a VAE in a folder, a hub repository, or a file. The name or folder of a model stands for that model's VAE.
    Raises `CheckpointError`."""
    if not isinstance(source, str | os.PathLike) or not os.fspath(source):
        raise CheckpointError(f"vae: expected a folder, a file or a hub id, got {source!r:.80}")
    name, options = os.fspath(source), dict(options)
    revision = options.pop("revision", None)
    if name in NAMES:
        return VaeFiles(builtin_folder(name) / "vae")
    folder = Path(name).expanduser()
    if not subfolder and is_folder(folder / "vae"):  # the folder of a model, because no VAE contains another one
        return VaeFiles.locate(folder / "vae")
    if not subfolder and not is_folder(folder) and name in DEFAULT_VAE:
        return VaeFiles.locate(DEFAULT_VAE[name], None, options)  # a revision that is given here is the model's
    if not subfolder:
        return VaeFiles.locate(source, revision, options)
    if not is_folder(folder) and is_hub_id(name):
        weights = [[f"{subfolder}/{_STEM}*.safetensors*"], [f"{subfolder}/{_STEM}*.bin*"]]
        folder = fetch_repository(name, revision, [f"{subfolder}/config.json"], weights, options)
    return VaeFiles.locate(folder / subfolder)


def state_of(module: nn.Module, source: TensorSource, resolutions: int) -> dict[str, torch.Tensor]:
    """The parameters of a module, under its names. Further tensors of the source are ignored. Raises `CheckpointError`
    if a tensor is missing; a source may lack the whole encoder, because it can still decode."""
    stored, state, absent = source.names(), dict[str, torch.Tensor](), []
    for name, parameter in module.named_parameters():
        held = next((alias for alias in _aliases(name, resolutions) if alias in stored), None)
        if held is None:
            absent.append(name)
            continue
        tensor = source.read(held)
        if tensor.numel() != parameter.numel() or tensor.shape[: parameter.ndim] != parameter.shape:
            raise CheckpointError(
                f"{source.label}: {held}: expected {tuple(parameter.shape)}, got {tuple(tensor.shape)}"
            )
        state[name] = tensor.view(parameter.shape)  # old files store attention's linears as 1x1 convolutions
    if not any(name.startswith("encoder.") for name in state):
        absent = [name for name in absent if not name.startswith(("encoder.", "quant_conv."))]
    if absent:
        raise CheckpointError(f"{source.label}: {len(absent)} tensors of the VAE are missing: {', '.join(absent[:3])}")
    return state


def _aliases(name: str, resolutions: int) -> Iterator[str]:
    yield name
    for new, old in OLD_NAMES.items():
        if f".{new}." in name:
            yield name.replace(f".{new}.", f".{old}.")
    yield compvis_name(name, resolutions)
