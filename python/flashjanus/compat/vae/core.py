"""The engine of an AutoencoderKL, which runs its decoder."""

from __future__ import annotations

import torch
from torch import nn

from flashjanus.checkpoint import VaeConfig, vae_layout
from flashjanus.compat import sharing
from flashjanus.compat.core import KNOWN, EngineOf
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


class VaeCore(EngineOf[VaeConfig, VaeDecoder]):
    """The engine of an `AutoencoderKL`. A VAE in float16 decodes in float32, because the decoder overflows in
    float16."""

    def made(self, root: nn.Module, config: VaeConfig) -> tuple[VaeDecoder, sharing.Shared]:
        place, dtype = sharing.place_and_dtype(root)
        device, _ = resolve_device(place)
        gpu = None if device.type == "cpu" else open_gpu(device)
        policy = Policy.of(torch.float32 if dtype is torch.float16 else dtype)
        source = sharing.ParameterSource(root, "AutoencoderKL")
        shared = sharing.Sharing(source)
        weights = loading.load(vae_layout(config), source, policy, device, gpu, source.label, shared)
        return VaeDecoder(config, policy, weights, device, gpu), shared.finished()
