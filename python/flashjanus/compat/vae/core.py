"""The engine of an AutoencoderKL: its decoder's plans."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import nn

from flashjanus.checkpoint import VaeConfig, vae_layout
from flashjanus.compat import sharing
from flashjanus.compat.core import KNOWN, Core, fingerprint
from flashjanus.compat.vae import modules
from flashjanus.engine.device.capabilities import resolve_device
from flashjanus.engine.runtime.cuda import open_gpu
from flashjanus.execution import loading
from flashjanus.execution.vae import VaeDecoder
from flashjanus.model import Policy

KNOWN |= {
    *(nn.GroupNorm, modules.ResnetBlock, modules.Attention, modules.MidBlock, modules.Downsample, modules.Upsample),
    *(modules.DownBlock, modules.UpBlock, modules.Encoder, modules.Decoder),
}


class VaeCore(Core):
    """As `Core`, of an `AutoencoderKL`, whose engine is a `VaeDecoder`."""

    def __init__(self) -> None:
        super().__init__()
        self._decoder: VaeDecoder | None = None

    def __deepcopy__(self, memo: object) -> VaeCore:
        return VaeCore()

    def __reduce__(self) -> tuple[type[VaeCore], tuple[()]]:
        return VaeCore, ()

    def link(self, root: Callable[[], Any]) -> None:
        super().link(root)

    def _current(self, *linked: Any) -> Any:
        root, config = linked or self._root()  # type: ignore[misc]
        with self._lock:
            state = fingerprint(root)
            if self._decoder is not None and state == self._made_of and not (self._sample and self._sample.changed()):
                return self._decoder
            self._decoder = None  # before there are two
            decoder, shared = decoder_of(root, config)
            self._decoder, self._made_of, self._sample = decoder, fingerprint(root), shared.sample()
            return decoder


def decoder_of(vae: nn.Module, config: VaeConfig) -> tuple[VaeDecoder, sharing.Shared]:
    """A decoder on the parameters of a module in diffusers' layout, and what they share; of one in float16, in which it
    would overflow, in float32. Raises FlashJanusError where its dtype or device has no engine."""
    place, dtype = sharing.place_and_dtype(vae)
    device, _ = resolve_device(place)
    gpu = None if device.type == "cpu" else open_gpu(device)
    policy = Policy.of(torch.float32 if dtype is torch.float16 else dtype)
    source = sharing.ParameterSource(vae, "AutoencoderKL")
    shared = sharing.Sharing(source)
    weights = loading.load(vae_layout(config), source, policy, device, gpu, source.label, shared)
    return VaeDecoder(config, policy, weights, device, gpu), shared.finished()
