"""Makes an engine from a torch model's parameters, and lets both share memory where layouts allow it."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import nn

from flashjanus.api.janusflow import JanusFlow
from flashjanus.checkpoint import JanusFlowConfig, Target, TensorInfo, VaeConfig
from flashjanus.checkpoint.load import stored_name
from flashjanus.engine.formats import Weight
from flashjanus.engine.runtime.entry import entry
from flashjanus.errors import InputError
from flashjanus.execution import loading
from flashjanus.inputs.images import ImageProcessor
from flashjanus.inputs.tokenizer import Tokenizer
from flashjanus.model import Policy

J = TypeVar("J", bound=JanusFlow)
SAMPLED = 3
"""The number of values of each copied parameter that are compared to find writes that torch does not count."""


class ParameterSource:
    """A module's parameters as a source of weights."""

    def __init__(self, module: nn.Module, label: str) -> None:
        self.label = label
        self.tensors: dict[str, torch.Tensor] = dict(module.named_parameters(remove_duplicate=False))
        self._names = {
            name: TensorInfo(tuple(p.shape), str(p.dtype).removeprefix("torch."), p.nbytes)
            for name, p in self.tensors.items()
        }

    def names(self) -> Mapping[str, TensorInfo]:
        return self._names

    def read(self, name: str) -> torch.Tensor:
        return self.tensors[name].detach()

    def close(self) -> None:
        """Do nothing: no file is open."""


@dataclass
class Shared:
    """A report on the memory of a module's parameters, in bytes: `shared` with the engine, `copied` into the engine in
    another layout or dtype, and `unused` by the engine.

    copies: the reason for each copied parameter, by name."""

    shared: int = 0
    copied: int = 0
    unused: int = 0
    copies: dict[str, str] = field(default_factory=dict)
    tensors: dict[str, torch.Tensor] = field(default_factory=dict, repr=False)

    @property
    def share(self) -> float:
        """The shared part of all bytes of the module's parameters, 0 to 1."""
        return self.shared / max(1, self.shared + self.copied + self.unused)

    def __str__(self) -> str:
        reasons: dict[str, int] = {}
        for reason in self.copies.values():
            reasons[reason] = reasons.get(reason, 0) + 1
        why = "; ".join(f"{count} {reason}" for reason, count in reasons.items())
        return (
            f"{self.share:.1%} of {(self.shared + self.copied + self.unused) / 2**20:.0f} MiB shared, "
            f"{self.copied / 2**20:.0f} MiB copied{f' ({why})' if why else ''}, "
            f"{self.unused / 2**20:.0f} MiB not used by the engine"
        )

    def sample(self) -> Sample:
        return Sample([self.tensors[name] for name in self.copies])


class Sample:
    """A few values of tensors, which reveal writes through `.data`; torch does not count those."""

    def __init__(self, tensors: list[torch.Tensor]) -> None:
        self._views = [_some(tensor.detach()) for tensor in tensors]
        self._values = self._read()

    def changed(self) -> bool:
        return self._read() != self._values

    def _read(self) -> list[float]:
        with torch.no_grad():
            return torch.cat(self._views).tolist() if self._views else []


def _some(tensor: torch.Tensor) -> torch.Tensor:
    """A view of SAMPLED values of a tensor."""
    flat = tensor.view(-1) if tensor.is_contiguous() else tensor[(0,) * (tensor.dim() - 1)]
    return flat[:: max(1, len(flat) // SAMPLED)][:SAMPLED]


class Sharing:
    """Points a module's parameters at the engine's weights as they are loaded."""

    def __init__(self, source: ParameterSource) -> None:
        self._source = source
        self.result = Shared()
        self._seen: set[str] = set()

    def __call__(self, policy: Policy, target: Target, kept: Mapping[str, torch.Tensor]) -> None:
        weight, of = kept[target.name], policy.kept(target)
        row = 0
        for wanted in target.sources:
            name = stored_name(wanted, self._source.names())
            assert name is not None, "what is missing was refused"
            tensor = self._source.tensors[name]
            rows = tensor.numel() // math.prod(target.shape[1:])
            part = weight[row : row + rows]
            row += rows
            if tensor.dtype is not weight.dtype:
                self._copied(name, f"kept in {str(weight.dtype).removeprefix('torch.')}")
            elif isinstance(of, Weight) and not of.formats[0].by_rows:
                self._copied(name, "kept in AMX tiles")
            elif target.permute or not part.is_contiguous():
                self._copied(name, "kept in another order")
            elif tensor.device != weight.device:
                self._copied(name, f"kept on {weight.device}")
            else:
                tensor.data = part.view(tensor.shape)
                self.result.shared += tensor.nbytes
                self._seen.add(name)

    def _copied(self, name: str, reason: str) -> None:
        self.result.copies[name] = reason
        self.result.tensors[name] = self._source.tensors[name]
        self.result.copied += self._source.tensors[name].nbytes
        self._seen.add(name)

    def finished(self) -> Shared:
        """Count the unused parameters and return the report. A tensor with several names, such as a tied head, counts
        once."""
        counted = {id(self._source.tensors[name]) for name in self._seen}
        for tensor in self._source.tensors.values():
            if id(tensor) not in counted:
                counted.add(id(tensor))
                self.result.unused += tensor.nbytes
        return self.result


def place_and_dtype(module: nn.Module) -> tuple[torch.device, torch.dtype]:
    """The device and dtype of all parameters. Raises InputError if they differ."""
    places = {(p.device, p.dtype) for p in module.parameters()}
    if len(places) != 1:
        found = ", ".join(sorted({f"{dtype} on {device}" for device, dtype in places})) or "none"
        raise InputError(f"parameters: expected one dtype on one device, got {found}; .to(device, dtype) moves them")
    (place,) = places
    if place[0].type not in ("cpu", "cuda"):
        raise InputError(f"parameters: expected them on a CPU or a CUDA device, got {place[0]}")
    return place


@entry
def engine_of(
    cls: type[J],
    module: nn.Module,
    config: JanusFlowConfig,
    *,
    vae: tuple[nn.Module, VaeConfig] | None = None,
    tokenizer: Tokenizer | None = None,
    processor: ImageProcessor | None = None,
    name: str = "module",
    **choices: Any,
) -> tuple[J, Shared]:
    """Make a model that runs on the parameters of a module in the official layout. Returns it with a report on shared
    memory. Raises FlashJanusError if the parameters do not match `config`, or if the engine does not support their
    dtype or device."""
    device, dtype = place_and_dtype(module)
    source = ParameterSource(module, name)
    sharing = Sharing(source)
    vae_files, vae_dtype, vae_sharing = None, dtype, None
    if vae is not None:
        vae_source = ParameterSource(vae[0], "vae")
        vae_files, vae_dtype, vae_sharing = (vae[1], vae_source), place_and_dtype(vae[0])[1], Sharing(vae_source)
    asked: dict[str, Any] = dict(
        vae_dtype=vae_dtype, numerics="exact", implementations=None, cuda_graphs=True, buckets=None, quantization=None
    )
    model = cls._build(
        config,
        source,
        vae_files,
        tokenizer,
        processor or ImageProcessor.from_file(None, config.understanding.image_size),
        name,
        loading.Choices(device, dtype, **(asked | choices)),
        placed=(sharing, vae_sharing),
    )
    shared = sharing.finished()
    if vae_sharing is not None:
        of_vae = vae_sharing.finished()
        shared.shared += of_vae.shared
        shared.copied += of_vae.copied
        shared.unused += of_vae.unused
        shared.copies |= {f"vae.{key}": reason for key, reason in of_vae.copies.items()}
        shared.tensors |= {f"vae.{key}": tensor for key, tensor in of_vae.tensors.items()}
    return model, shared
