"""The source from which a pipeline loads its model, and the device and dtype that it loads it to."""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from flashjanus.api.janusflow import JanusFlow
from flashjanus.builtin import NAMES, builtin_folder
from flashjanus.checkpoint import Checkpoint, StateDictSource, TensorSource
from flashjanus.checkpoint.files import VaeFiles
from flashjanus.errors import InputError
from flashjanus.execution.loading import Choices
from flashjanus.sampling import checks


class ModuleVae(VaeFiles):
    """A VAE that is loaded already: an AutoencoderKL of diffusers, or any object with its config and state_dict."""

    def __init__(self, module: Any) -> None:
        kind = type(module).__name__
        if not isinstance(getattr(module, "config", None), Mapping) or not hasattr(module, "state_dict"):
            raise InputError(f"vae: expected a folder, a hub id, or an AutoencoderKL of diffusers, got {kind}")
        super().__init__(Path(kind))
        self.config_dict = dict(module.config)
        self.source = StateDictSource(module.state_dict(), f"vae ({kind})")

    @property
    def weights(self) -> TensorSource:  # type: ignore[override]
        return self.source


@dataclass(frozen=True)
class Source:
    """The source of a pipeline's model (a path or a hub id) and the options with which it is loaded. If dtype is None,
    it is chosen during loading; if vae_dtype is None, it follows dtype as far as the VAE can compute in it. vae: the
    argument of from_pretrained. hub: options of a download."""

    path: str | os.PathLike[str]
    vae: Any
    revision: str | None
    hub: Mapping[str, Any]
    choices: Choices

    def load(self) -> JanusFlow:
        """Load the model. Raises the errors of `JanusFlow.from_pretrained`."""
        dtype, vae_dtype = self.choices.dtype, self.choices.vae_dtype
        dtype = "auto" if dtype is None else dtype
        if vae_dtype is None:  # the VAE's decoder overflows in float16
            vae_dtype = "float32" if checks.dtype(dtype, torch.float32) is torch.float16 else "auto"
        located = self.vae is None or isinstance(self.vae, str | os.PathLike)
        loaded = None if located else ModuleVae(self.vae)
        name = str(self.path)
        checkpoint = Checkpoint.open(
            builtin_folder(name) if name in NAMES else self.path,
            vae=self.vae if located else None,
            revision=self.revision,
            hub=self.hub,
        )
        if loaded is not None:
            checkpoint.vae = loaded
        return JanusFlow._of(checkpoint, name, replace(self.choices, dtype=dtype, vae_dtype=vae_dtype))


def one_device(device_map: Any) -> Any:
    """Turn device_map into a device. Raises InputError if it names several devices."""
    if device_map in ("balanced", "balanced_low_0", "sequential") or isinstance(device_map, Mapping):
        raise InputError(f"device_map: expected one device, such as 'cpu' or 'cuda', got {device_map!r:.80}")
    return "auto" if device_map is None else device_map


def destination(args: tuple[Any, ...], kwargs: dict[str, Any]) -> tuple[Any, torch.dtype | None]:
    """The device and the dtype in the arguments of `to`, or None where there is none. Raises InputError."""
    named = {"device": None, "dtype": kwargs.pop("torch_dtype", None), **kwargs}
    unknown = set(named) - {"device", "dtype", "silence_dtype_warnings"}
    if unknown or len(args) > 2:
        raise InputError(f"to: expected a device, a dtype, or a device and a dtype, got {(*args, *sorted(unknown))}")
    for position, value in enumerate(args):
        name = "dtype" if isinstance(value, torch.dtype) else "device"
        if value is None:
            continue
        if named[name] is not None or (position == 1 and name == "device"):
            raise InputError(f"to: expected a device, a dtype, or a device and a dtype, got {args}")
        named[name] = value
    if named["dtype"] is not None:
        named["dtype"] = checks.dtype(named["dtype"], torch.float32)
    return named["device"], named["dtype"]


def same_device(device: Any, here: torch.device) -> bool:
    kind, _, index = str(device).partition(":")
    return kind == here.type and (not index or index == str(here.index or 0))
