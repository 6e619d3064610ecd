"""Trains the built-in model "shapes" and writes it in the official layout.

    python examples/shapes/train.py RUN_FOLDER [--device cpu] [--seed 0]

Runs unattended and may be killed at any moment: the same command goes on where it was. Progress is printed and kept as
JSON lines in RUN_FOLDER/<stage>.jsonl, with plots and sample sheets; the model is written to RUN_FOLDER/model.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import torch
from configs import model_config, vae_config
from data import Encoder
from files import write_text
from flashjanus.pipeline.tokenizer import Tokenizer
from janusflow import JanusFlow
from package import (
    TOKENIZER_FILES,
    padded_vocabulary,
    train_tokenizer,
    write_model,
    write_text_files,
)
from plots import plot_run
from recipe import MINIATURE, Recipe, write_recipe
from stages import Base, Trainer
from vae_stage import read_vae, trained_vae


def prepare(folder: Path, recipe: Recipe, seed: int, device: torch.device, base: Base | None = None) -> Trainer:
    """A Trainer with its VAE trained, and the model's text files in folder/model."""
    folder.mkdir(parents=True, exist_ok=True)
    write_recipe(folder, recipe, seed)
    written = folder / "model"
    tokenizer = train_tokenizer()
    config = model_config(padded_vocabulary(tokenizer), recipe.sizes)
    write_text_files(written, tokenizer, config, vae_config(recipe.sizes))
    if base is None:
        vae = trained_vae(folder, seed, device, recipe)
    else:
        vae = read_vae(base.folder, recipe.sizes, device)
        torch.manual_seed(seed)
    model = JanusFlow(config, torch.Generator().manual_seed(seed)).to(device)
    encoder = Encoder(Tokenizer.from_files(*(written / name for name in TOKENIZER_FILES)))
    return Trainer(model, vae, encoder, folder, seed, recipe, base)


def train(folder: Path, recipe: Recipe, seed: int, device: torch.device, base: Base | None = None) -> Trainer:
    """Trains all that is not finished in `folder`, and writes folder/model.

    A run that only compares (it has a base, or one encoder for both faces) gets folder/scores.json instead.
    """
    trainer = prepare(folder, recipe, seed, device, base)
    trainer.run()
    plot_run(folder, recipe)
    if base is None and not recipe.shared:
        write_model(folder / "model", trainer.model.official_state(), trainer.vae, recipe.ceiling)
        print(f"the model is in {folder / 'model'}", flush=True)
    else:
        scores = trainer.score(100, steps=30) | trainer.answer_score(100)
        write_text(folder / "scores.json", json.dumps({"seed": seed, **scores}, indent=1) + "\n")
        print(json.dumps(scores), flush=True)
    return trainer


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--threads", default=0, type=int, help="CPU threads; 0: as many as there are cores")
    parser.add_argument("--miniature", action="store_true", help="a minute's run that only shows that all works")
    compare = parser.add_argument_group("to compare ways of training; --from and --shared-encoder write no model")
    compare.add_argument("--from", dest="base", type=Path, help="a run whose VAE, encoders and scenes are read")
    compare.add_argument("--from-seed", default=0, type=int, help="the seed of that run")
    compare.add_argument("--alignment", type=float, help="weight of the representation alignment; 0: none")
    compare.add_argument("--shared-encoder", action="store_true", help="the generation encoder serves both faces")
    compare.add_argument("--pretrain-steps", type=int)
    chosen = parser.parse_args(arguments)
    if chosen.threads:
        torch.set_num_threads(chosen.threads)
    recipe = replace(MINIATURE if chosen.miniature else Recipe(), shared=chosen.shared_encoder)
    if chosen.alignment is not None:
        recipe = replace(recipe, alignment=chosen.alignment)
    if chosen.pretrain_steps is not None:
        recipe = replace(recipe, pretrain=replace(recipe.pretrain, steps=chosen.pretrain_steps))
    base = None if chosen.base is None else Base(chosen.base, chosen.from_seed)
    train(chosen.folder, recipe, chosen.seed, chosen.device, base)


if __name__ == "__main__":
    main()
