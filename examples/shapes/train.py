"""Trains the built-in model "shapes" and writes it in the official layout.

    python examples/shapes/train.py RUN_FOLDER [--device cpu] [--seed 0]

Runs unattended and may be killed at any moment: the same command goes on where it was. Progress is printed and kept as
JSON lines in RUN_FOLDER/<stage>.jsonl; the model is written to RUN_FOLDER/model.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np
import torch
from autoencoder import AutoencoderKL
from data import Encoder
from flashjanus.evaluation import judge, world
from flashjanus.evaluation.prompts import ceiling_scenes
from flashjanus.pipeline.tokenizer import Tokenizer
from janusflow import JanusFlow
from loop import save_atomically
from package import VAE, model_config, padded_vocabulary, train_tokenizer, write_text_files, write_weights
from recipe import Recipe
from stages import Trainer, to_u8
from vae_stage import pixels, sample_scenes, train_vae
from whiten import whiten

CEILING_SCENES = 240


def trained_vae(folder: Path, seed: int, device: torch.device, recipe: Recipe) -> AutoencoderKL:
    """The VAE, trained and whitened; from `folder` where it was finished before."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(VAE)
    path = folder / "vae-whitened.pth"
    if path.exists():
        vae.load_state_dict(torch.load(path, weights_only=True))
    else:
        train_vae(vae, folder, seed, device, recipe.vae)
        scenes = sample_scenes(np.random.default_rng([seed, 78]), 3000)
        with torch.no_grad(), torch.autocast(device.type, torch.bfloat16):
            parts = [scenes[i : i + 100] for i in range(0, len(scenes), 100)]
            means = [vae.encode(pixels([world.render(s) for s in part]).to(device))[0].float() for part in parts]
        whiten(vae, torch.cat(means))
        save_atomically(vae.state_dict(), path)
    vae.to(device, memory_format=torch.channels_last)
    scenes = sample_scenes(np.random.default_rng([seed, 79]), 300, "validation")
    with torch.no_grad():
        images = to_u8(vae.decode(vae.encode(pixels([world.render(s) for s in scenes]).to(device))[0]))
    right = [judge.matches(scene, judge.look(image)) for scene, image in zip(scenes, images, strict=True)]
    print(f"the VAE gives back {np.mean(right):.3f} of {len(right)} unseen scenes exactly", flush=True)
    return vae


@torch.no_grad()
def write_model(folder: Path, model: JanusFlow, vae: AutoencoderKL) -> None:
    """Weights in bf16, and the latents of ground-truth scenes from which the evaluation tells the VAE's ceiling."""
    write_weights(folder / "vae" / "diffusion_pytorch_model.safetensors", vae.state_dict())
    images = pixels([world.render(scene) for scene in ceiling_scenes(CEILING_SCENES)])
    latents = vae.encode(images.to(next(vae.parameters()).device))[0]
    write_weights(folder / "evaluation.safetensors", {"latents": latents.cpu()})
    write_weights(folder / "model.safetensors", model.official_state())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--threads", default=0, type=int, help="CPU threads; 0: as many as there are cores")
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    folder, device = chosen.folder, chosen.device
    recipe = Recipe()
    tokenizer = train_tokenizer()
    config = model_config(padded_vocabulary(tokenizer))
    written = folder / "model"
    write_text_files(written, tokenizer, config)
    files = [written / name for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json")]
    vae = trained_vae(folder, chosen.seed, device, recipe)
    model = JanusFlow(config, torch.Generator().manual_seed(chosen.seed)).to(device)
    trainer = Trainer(model, vae, Encoder(Tokenizer.from_files(*files)), folder, chosen.seed, recipe)
    trainer.train_vit()
    trainer.prepare_scenes()
    for stage in (trainer.train_answers, trainer.adapt, trainer.pretrain, trainer.tune):
        stage()
    write_model(written, model, vae)
    print(f"the model is in {written}", flush=True)


if __name__ == "__main__":
    main()
