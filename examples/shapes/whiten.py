"""Whitens the VAE's latents: zero mean, unit covariance over scenes, by its two 1 x 1 convolutions alone."""

from __future__ import annotations

import torch
from autoencoder import AutoencoderKL
from torch import Tensor


@torch.no_grad()
def whiten(vae: AutoencoderKL, means: Tensor) -> None:
    """Folds the rotation and scale that whiten posterior `means` (B, c, L, L) into quant_conv and post_quant_conv.

    Pictures stay the same. The posterior's variances are left as they were, and belong to the old axes.
    """
    rows = means.double().permute(1, 0, 2, 3).flatten(1)
    center = rows.mean(1)
    variances, axes = torch.linalg.eigh(torch.cov(rows))
    into, back = axes.T / variances.sqrt()[:, None], axes * variances.sqrt()
    latent = len(center)
    state = {name: p.detach() for name, p in vae.named_parameters()}
    weight, bias = state["quant_conv.weight"][:latent, :, 0, 0], state["quant_conv.bias"][:latent]
    bias.copy_(into @ (bias.double() - center))
    weight.copy_(into @ weight.double())
    weight, bias = state["post_quant_conv.weight"][:, :, 0, 0], state["post_quant_conv.bias"]
    bias += (weight.double() @ center).to(bias)
    weight.copy_(weight.double() @ back)
