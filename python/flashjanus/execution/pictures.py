"""Turns latents into pictures by the VAE's decoder, one picture at a time, and into previews."""

from __future__ import annotations

import torch

from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.errors import NonFiniteError
from flashjanus.execution.runner import Runner


class Decoder(ProcessBound):
    """Memory of a bucket of latents of one size."""

    def __init__(self, runner: Runner, height: int, width: int) -> None:
        self.executor = runner.executor("decode_latents", B=1, H=height, W=width)

    @property
    def nbytes(self) -> int:
        return self.executor.nbytes


def decode(runner: Runner, latents: torch.Tensor) -> torch.Tensor:
    """Images (B, 3, H s, W s), float32, of finite latents (B, c, H, W). Raises NonFiniteError."""
    images = []
    with runner.lease(Decoder, *latents.shape[2:]) as decoder:
        # one at a time: activations at image resolution, not weights, dominate memory
        for z in torch.split(latents, 1):
            decoder.executor.inputs["z"].copy_(z)
            decoder.executor.run()
            images.append(decoder.executor.outputs["image"].to(torch.float32, copy=True))
    decoded = torch.cat(images)
    if not bool(decoded.isfinite().all()):
        raise NonFiniteError(
            "expected finite pixels, got NaN or inf: decoding the latents overflowed the dtype of the VAE. "
            "dtype='bfloat16' or 'float32' avoids that"
        )
    return decoded


def preview(runner: Runner, latents: torch.Tensor, full: bool) -> torch.Tensor:
    """Previews (B, 3, h, w) in [0, 1], float32, of latents (B, c, H, W) at t = 1. The linear map makes them at the
    latents' size; the VAE makes them with `full`, and while there is no map."""
    linear = runner.previews.map
    if linear is not None and not full:
        return linear.show(latents)
    return (decode(runner, latents).clamp(-1, 1) + 1) / 2
