"""Trains the VAE on rendered scenes, whitens its latents, and measures what of a scene it gives back."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from autoencoder import AutoencoderKL
from checkpoints import TrainingError, save_atomically
from configs import vae_config
from flashjanus.measure.evaluation import judge, world
from loop import Draw, run_stage
from pictures import rendered, to_u8
from ranks import rank, share, spread
from recipe import Recipe, Sizes
from torch import Tensor
from whiten import whiten

VAE_FILE = "vae-whitened.pth"
KL = 1e-3
KINDS: tuple[world.Kind, ...] = (
    "single_object",
    "counting",
    "position",
    "two_objects",
    "mixed",
    "mixed",
)


def sample_scenes(rng: np.random.Generator, count: int, split: world.Split = "train") -> list[world.Scene]:
    return [world.sample_scene(rng, split, KINDS[i % len(KINDS)]) for i in range(count)]


def trained_vae(folder: Path, seed: int, device: torch.device, recipe: Recipe) -> AutoencoderKL:
    """The VAE, trained and whitened; from `folder` where it was finished before. Seeds torch's global generator."""
    torch.manual_seed(seed)
    path = folder / VAE_FILE
    if path.exists():
        vae = read_vae(folder, recipe.sizes, device)
    else:
        vae = AutoencoderKL(vae_config(recipe.sizes)).place(device)
        train_vae(vae, folder, seed, recipe)
        whiten(vae, scene_means(vae, seed, recipe.whitened))
        spread(list(vae.parameters()))
        if rank() == 0:
            save_atomically(vae.state_dict(), path)
    if rank() == 0:
        print(f"the VAE gives back {exact_share(vae, seed, recipe.checked):.3f} of unseen scenes exactly", flush=True)
    return vae


@torch.no_grad()
def scene_means(vae: AutoencoderKL, seed: int, count: int) -> Tensor:
    """Posterior means (count, c, L, L) of scenes of the training split."""
    device = next(vae.parameters()).device
    scenes = sample_scenes(np.random.default_rng([seed, 78]), count)
    with torch.autocast(device.type, torch.bfloat16):
        parts = [scenes[i : i + 100] for i in range(0, len(scenes), 100)]
        means = [vae.encode(rendered(part).to(device))[0].float() for part in parts]
    return torch.cat(means)


def read_vae(folder: Path, sizes: Sizes, device: torch.device) -> AutoencoderKL:
    """The VAE that a run has trained and whitened. Raises TrainingError where there is none."""
    path = folder / VAE_FILE
    if not path.is_file():
        raise TrainingError(f"{path} is missing: expected a run that has trained its VAE")
    vae = AutoencoderKL(vae_config(sizes))
    vae.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return vae.place(device)


def train_vae(vae: AutoencoderKL, folder: Path, seed: int, recipe: Recipe) -> None:
    device = next(vae.parameters()).device

    def losses(step: int, draw: Draw) -> dict[str, Tensor]:
        scenes = sample_scenes(draw.numpy, share(recipe.vae_batch))
        background = torch.tensor([world.BACKGROUNDS[scene.background] for scene in scenes])
        x = rendered(scenes).to(device)
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

    run_stage(recipe.vae, vae, losses, folder, seed)


@torch.no_grad()
def exact_share(vae: AutoencoderKL, seed: int, count: int) -> float:
    """Share of validation scenes in which the judge sees the same after the VAE as before."""
    device = next(vae.parameters()).device
    scenes = sample_scenes(np.random.default_rng([seed, 79]), count, "validation")
    images = to_u8(vae.decode(vae.encode(rendered(scenes).to(device))[0]))
    return float(np.mean([judge.matches(s, judge.look(image)) for s, image in zip(scenes, images, strict=True)]))
