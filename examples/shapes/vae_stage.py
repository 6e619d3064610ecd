"""Trains the VAE on rendered scenes, then whitens its latents."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from autoencoder import AutoencoderKL
from flashjanus.evaluation import world
from loop import Draw, run_stage
from recipe import Stage
from torch import Tensor

BATCH = 32
KL = 1e-3
KINDS: tuple[world.Kind, ...] = (
    "single_object",
    "counting",
    "position",
    "two_objects",
    "mixed",
    "mixed",
)


def pixels(images: list[np.ndarray[Any, Any]]) -> Tensor:
    """u8 pictures as (B, 3, S, S) in [-1, 1], channels-last."""
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def sample_scenes(rng: np.random.Generator, count: int, split: world.Split = "train") -> list[world.Scene]:
    return [world.sample_scene(rng, split, KINDS[i % len(KINDS)]) for i in range(count)]


def train_vae(vae: AutoencoderKL, folder: Path, seed: int, device: torch.device, stage: Stage) -> None:
    vae.to(device, memory_format=torch.channels_last)

    def losses(step: int, draw: Draw) -> dict[str, Tensor]:
        scenes = sample_scenes(draw.numpy, BATCH)
        images = [world.render(scene) for scene in scenes]
        background = torch.tensor([world.BACKGROUNDS[scene.background] for scene in scenes])
        x = pixels(images).to(device)
        away = (x - (background.to(device)[:, :, None, None] / 127.5 - 1)).abs().amax(1, keepdim=True) > 0.02
        weight = 1 + 3 * away
        with torch.autocast(device.type, torch.bfloat16):
            mean, log_variance = vae.encode(x)
            noise = torch.randn(mean.shape, generator=draw.torch).to(mean)
            y = vae.decode(mean + (0.5 * log_variance).exp() * noise).float()
        mean, log_variance = mean.float(), log_variance.float()
        kl = 0.5 * (mean.square() + log_variance.exp() - 1 - log_variance).mean()
        error = y - x
        return {
            "l1": (weight * error.abs()).mean(),
            "l2": (weight * error.square()).mean(),
            "kl": KL * kl,
            "_sigma": (0.5 * log_variance).exp().mean(),
        }

    run_stage(stage, vae, losses, folder, seed)
