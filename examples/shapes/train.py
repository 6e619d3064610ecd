"""Trains the built-in model "shapes" and writes it in the official layout.

    python examples/shapes/train.py RUN_FOLDER [--device cpu] [--seed 0]

Runs unattended and may be killed at any moment: the same command goes on where it was. Progress is printed and kept as
JSON lines in RUN_FOLDER/<stage>.jsonl; the model is written to RUN_FOLDER/model.
"""

from __future__ import annotations

import argparse
import json
from dataclasses import asdict, replace
from pathlib import Path

import numpy as np
import torch
from autoencoder import AutoencoderKL
from checkpoints import TrainingError, save_atomically
from data import Encoder
from flashjanus.evaluation import judge, world
from flashjanus.evaluation.prompts import ceiling_scenes
from flashjanus.pipeline.tokenizer import Tokenizer
from janusflow import JanusFlow
from package import VAE, model_config, padded_vocabulary, train_tokenizer, write_text_files, write_weights
from recipe import Recipe
from stages import Base, Trainer, to_u8
from vae_stage import pixels, sample_scenes, train_vae
from whiten import whiten

CEILING_SCENES = 240
VAE_FILE = "vae-whitened.pth"


def read_vae(path: Path, device: torch.device) -> AutoencoderKL:
    """A whitened VAE that another run has trained."""
    if not path.is_file():
        raise TrainingError(f"{path} is missing: expected a run that has trained its VAE")
    vae = AutoencoderKL(VAE)
    vae.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
    return vae.to(device, memory_format=torch.channels_last)


def trained_vae(folder: Path, seed: int, device: torch.device, recipe: Recipe) -> AutoencoderKL:
    """The VAE, trained and whitened; from `folder` where it was finished before."""
    torch.manual_seed(seed)
    vae = AutoencoderKL(VAE)
    path = folder / VAE_FILE
    if path.exists():
        vae.load_state_dict(torch.load(path, weights_only=True, map_location="cpu"))
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


def scores(trainer: Trainer, samples: int = 100) -> dict[str, float]:
    """Of pictures (30 steps, guidance 2) and answers, on the validation split."""
    return trainer.score(samples, steps=30) | trainer.answer_score(samples)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--threads", default=0, type=int, help="CPU threads; 0: as many as there are cores")
    compare = parser.add_argument_group("to compare ways of training; FOLDER gets scores.json, and no model")
    compare.add_argument("--from", dest="base", type=Path, help="a run whose VAE, encoders and scenes are read")
    compare.add_argument("--from-seed", default=0, type=int, help="the seed of that run")
    compare.add_argument("--alignment", type=float, help="weight of the representation alignment; 0: none")
    compare.add_argument("--shared-encoder", action="store_true", help="the generation encoder serves both faces")
    compare.add_argument("--pretrain-steps", type=int)
    chosen = parser.parse_args()
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    folder, device = chosen.folder, chosen.device
    recipe = Recipe(shared=chosen.shared_encoder)
    if chosen.alignment is not None:
        recipe = replace(recipe, alignment=chosen.alignment)
    if chosen.pretrain_steps is not None:
        recipe = replace(recipe, pretrain=replace(recipe.pretrain, steps=chosen.pretrain_steps))
    base = None if chosen.base is None else Base(chosen.base, chosen.from_seed)
    tokenizer = train_tokenizer()
    config = model_config(padded_vocabulary(tokenizer))
    written = folder / "model"
    write_text_files(written, tokenizer, config)
    files = [written / name for name in ("tokenizer.json", "tokenizer_config.json", "processor_config.json")]
    if base is None:
        vae = trained_vae(folder, chosen.seed, device, recipe)
    else:
        vae = read_vae(base.folder / VAE_FILE, device)
        torch.manual_seed(chosen.seed)
    model = JanusFlow(config, torch.Generator().manual_seed(chosen.seed)).to(device)
    trainer = Trainer(model, vae, Encoder(Tokenizer.from_files(*files)), folder, chosen.seed, recipe, base)
    trainer.train_vit()
    trainer.prepare_scenes()
    for stage in (trainer.train_answers, trainer.adapt, trainer.pretrain, trainer.tune):
        stage()
    if base is not None or recipe.shared:
        found = {"seed": chosen.seed, "recipe": asdict(recipe), "scores": scores(trainer)}
        (folder / "scores.json").write_text(json.dumps(found, indent=1) + "\n", encoding="utf-8")
        print(json.dumps(found["scores"]), flush=True)
    else:
        write_model(written, model, vae)
        print(f"the model is in {written}", flush=True)


if __name__ == "__main__":
    main()
