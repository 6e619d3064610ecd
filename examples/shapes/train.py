"""Trains the built-in model "shapes" and writes it in the official layout.

    python examples/shapes/train.py RUN_FOLDER [--processes 2] [--device cuda] [--seed 0]

Runs unattended and may be killed at any moment: the same command goes on where it was. Progress is printed and kept as
JSON lines in RUN_FOLDER/<stage>.jsonl, with plots and sample sheets; the model is written to RUN_FOLDER/model.
"""

from __future__ import annotations

import argparse
import json
import os
import tempfile
import threading
from collections.abc import Sequence
from dataclasses import replace
from multiprocessing import parent_process
from pathlib import Path

import torch
import torch.distributed
from configs import model_config, vae_config
from data import Encoder
from flashjanus.disk.writing import write_json
from flashjanus.inputs.tokenizer import Tokenizer
from janusflow import JanusFlow
from package import (
    TOKENIZER_FILES,
    padded_vocabulary,
    train_tokenizer,
    write_model,
    write_text_files,
)
from plots import plot_run
from ranks import first_alone, rank
from recipe import MINIATURE, Recipe, write_recipe
from stages import Base, Trainer
from torch.multiprocessing.spawn import spawn
from vae_stage import read_vae, trained_vae


def prepare(folder: Path, recipe: Recipe, seed: int, device: torch.device, base: Base | None = None) -> Trainer:
    """A Trainer with its VAE trained, and the model's text files in folder/model."""
    tokenizer = train_tokenizer()
    config = model_config(padded_vocabulary(tokenizer), recipe.sizes)
    written = folder / "model"
    with first_alone():
        if rank() == 0:
            folder.mkdir(parents=True, exist_ok=True)
            write_recipe(folder, recipe, seed)
            write_text_files(written, tokenizer, config, vae_config(recipe.sizes))
        known = Tokenizer.from_files(*(written / name for name in TOKENIZER_FILES))
    if base is None:
        vae = trained_vae(folder, seed, device, recipe)
    else:
        vae = read_vae(base.folder, recipe.sizes, device)
        torch.manual_seed(seed)
    model = JanusFlow(config, torch.Generator().manual_seed(seed)).to(device)
    return Trainer(model, vae, Encoder(known), folder, seed, recipe, base)


def train(folder: Path, recipe: Recipe, seed: int, device: torch.device, base: Base | None = None) -> Trainer:
    """Trains all that is not finished in `folder`, and writes folder/model.

    A run that only compares (it has a base, or one encoder for both faces) gets folder/scores.json instead.
    """
    trainer = prepare(folder, recipe, seed, device, base)
    trainer.run()
    if rank() > 0:
        return trainer
    plot_run(folder, recipe)
    if base is None and not recipe.shared:
        write_model(folder / "model", trainer.model.official_state(), trainer.vae, recipe.ceiling)
        print(f"the model is in {folder / 'model'}", flush=True)
    else:
        samples, questions = recipe.scored
        scores = trainer.score(samples, steps=30) | trainer.answer_score(questions)
        write_json(folder / "scores.json", {"seed": seed, **scores}, durable=True)
        print(json.dumps(scores), flush=True)
    return trainer


def parse(arguments: Sequence[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--device", default="cpu", type=torch.device)
    parser.add_argument("--seed", default=0, type=int)
    parser.add_argument("--processes", default=1, type=int, help="CPU processes that share every step")
    parser.add_argument("--threads", default=0, type=int, help="of each process; 0: its share of the cores")
    parser.add_argument("--miniature", action="store_true", help="a minute's run that only shows that all works")
    compare = parser.add_argument_group("to compare ways of training; --from and --shared-encoder write no model")
    compare.add_argument("--from", dest="base", type=Path, help="a run whose VAE, encoders and scenes are read")
    compare.add_argument("--from-seed", default=0, type=int, help="the seed of that run")
    compare.add_argument("--alignment", type=float, help="weight of the representation alignment; 0: none")
    compare.add_argument("--shared-encoder", action="store_true", help="the generation encoder serves both faces")
    compare.add_argument("--pretrain-steps", type=int)
    compare.add_argument("--tune-steps", type=int)
    chosen = parser.parse_args(arguments)
    if chosen.processes > 1 and chosen.device.type != "cpu":
        parser.error("--processes is for CPUs; leave it out with --device")
    return chosen


def chosen_recipe(chosen: argparse.Namespace) -> Recipe:
    recipe = replace(MINIATURE if chosen.miniature else Recipe(), shared=chosen.shared_encoder)
    if chosen.alignment is not None:
        recipe = replace(recipe, alignment=chosen.alignment)
    if chosen.pretrain_steps is not None:
        recipe = replace(recipe, pretrain=replace(recipe.pretrain, steps=chosen.pretrain_steps))
    if chosen.tune_steps is not None:
        recipe = replace(recipe, tune=replace(recipe.tune, steps=chosen.tune_steps))
    return recipe


def end_with_parent() -> None:
    """Ends this process when the one that started it is gone: it must not train on beside a new run."""
    parent = parent_process()
    if parent is None:
        return

    def wait() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=wait, daemon=True).start()


def work(number: int, meeting: str, chosen: argparse.Namespace) -> None:
    """One of the processes; they meet in the file `meeting`."""
    end_with_parent()
    torch.set_num_threads(chosen.threads or max(1, (os.cpu_count() or 1) // chosen.processes))
    if chosen.processes > 1:
        torch.distributed.init_process_group(
            "gloo", init_method=f"file://{meeting}", rank=number, world_size=chosen.processes
        )
    base = None if chosen.base is None else Base(chosen.base, chosen.from_seed)
    train(chosen.folder, chosen_recipe(chosen), chosen.seed, chosen.device, base)


def main(arguments: Sequence[str] | None = None) -> None:
    chosen = parse(arguments)
    with tempfile.TemporaryDirectory() as folder:
        meeting = str(Path(folder) / "meeting")
        if chosen.processes > 1:
            spawn(work, (meeting, chosen), chosen.processes)  # type: ignore[no-untyped-call]
        else:
            work(0, meeting, chosen)


if __name__ == "__main__":
    main()
