"""The VAE's decoder without a drawing model, for a caller that has the latents."""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Mapping
from dataclasses import replace

import torch

from flashjanus.checkpoint import VaeConfig, vae_layout
from flashjanus.engine.plan import lower
from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.engine.runtime.cuda import Gpu
from flashjanus.engine.runtime.entry import entry
from flashjanus.engine.runtime.executor import Executor
from flashjanus.model import Policy, decode_latents, weight_specs

KEPT_SIZES = 2
"""The number of latent sizes whose memory is kept for the next call; the least recently used is dropped first."""


class VaeDecoder(ProcessBound):
    """Plans and executors of one VAE on one device. `weights` are the packed tensors of `vae_layout`."""

    def __init__(
        self,
        config: VaeConfig,
        policy: Policy,
        weights: Mapping[str, torch.Tensor],
        device: torch.device,
        gpu: Gpu | None = None,
    ) -> None:
        unscaled = replace(config, scaling_factor=1.0)
        self.graph = decode_latents(unscaled, policy, weight_specs(vae_layout(unscaled), policy))
        self.weights, self.device, self.gpu = weights, device, gpu
        self._executors: OrderedDict[tuple[int, int], Executor] = OrderedDict()
        self._lock = threading.Lock()

    @entry
    def decode(self, latents: torch.Tensor) -> torch.Tensor:
        """Images (B, c, H s, W s), float32, of latents (B, c, H, W) that have already been divided by the scaling
        factor."""
        images = []
        with self._lock:
            executor = self._executor(latents.shape[2], latents.shape[3])
            for z in torch.split(latents, 1):
                executor.inputs["z"].copy_(z)
                executor.run()
                images.append(executor.outputs["image"].to(torch.float32, copy=True))
        return torch.cat(images)

    def _executor(self, height: int, width: int) -> Executor:
        size = height, width
        if size not in self._executors:
            with torch.inference_mode(False):  # memory made in inference mode could not be written outside of it
                plan = lower(self.graph, dict(B=1, H=height, W=width), self.device)
                self._executors[size] = Executor(plan, self.weights, gpu=self.gpu)
                self._executors[size].capture()
            if len(self._executors) > KEPT_SIZES:
                self._executors.popitem(last=False)
        self._executors.move_to_end(size)
        return self._executors[size]
