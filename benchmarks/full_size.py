"""Write a JanusFlow of the published sizes with random weights, in the official layout, to time what loads from disk.

    python benchmarks/full_size.py FOLDER            # 4.1 GB of bf16 shards, their index, config.json, a VAE
    flashjanus bench latency --model FOLDER --stages load,prepare,step,SigLIP,prefill,token --peer torch
    flashjanus profile generate "a red circle" --model FOLDER --steps 4

Random weights draw noise, but every shape, layout and byte count is that of the published checkpoint, and so are the
times. The tokenizer is the built-in model's, whose ids are all in the vocabulary. `flashjanus bench latency
--random-weights full` needs no folder.
"""

from __future__ import annotations

import argparse
import json
import shutil
from pathlib import Path
from typing import Any

import torch
from flashjanus.builtin import builtin_folder
from flashjanus.checkpoint import JanusFlowConfig, VaeConfig, vae_layout, weight_layout
from flashjanus.measure.bench.models import SeededState, configs
from flashjanus.measure.bench.stages import CHAT_TOKENS, PROMPT_TOKENS
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
SHARD_BYTES = 2**30
__all__ = ["CHAT_TOKENS", "PROMPT_TOKENS", "ROOT", "config", "make"]


def config() -> dict[str, Any]:
    """The published config.json."""
    return configs("full")[0]


def add_faces(folder: Path, of: dict[str, Any] | None = None, vae: dict[str, Any] | None = None) -> None:
    """Write what words and pictures need besides the weights: the built-in tokenizer, and a VAE of random weights."""
    of, vae = of or config(), vae or configs("full")[1]
    (folder / "vae").mkdir(parents=True, exist_ok=True)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(builtin_folder("shapes") / name, folder)
    processor = json.loads((builtin_folder("shapes") / "processor_config.json").read_text(encoding="utf-8"))
    tokens = JanusFlowConfig.from_dict(of).num_understanding_tokens
    (folder / "processor_config.json").write_text(json.dumps({**processor, "num_image_tokens": tokens}, indent=1))
    (folder / "vae/config.json").write_text(json.dumps(vae, indent=1))
    state = SeededState(vae_layout(VaeConfig.from_dict(vae)), torch.bfloat16)
    save_file({name: state[name] for name in state}, folder / "vae/diffusion_pytorch_model.safetensors")


def make(folder: Path, of: dict[str, Any] | None = None) -> None:
    """Write config.json, shards and their index; the index last, so that an interrupted run leaves no checkpoint."""
    of = of or config()
    state = SeededState(weight_layout(JanusFlowConfig.from_dict(of)), torch.bfloat16)
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.json").write_text(json.dumps(of, indent=1))
    shards: list[list[str]] = [[]]
    size = 0
    for name, spec in state.items():
        if shards[-1] and size + spec.nbytes > SHARD_BYTES:
            shards.append([])
            size = 0
        shards[-1].append(name)
        size += spec.nbytes
    index = {}
    for i, names in enumerate(shards):
        file = f"model-{i + 1:05}-of-{len(shards):05}.safetensors"
        save_file({name: state[name] for name in names}, folder / file)
        index.update(dict.fromkeys(names, file))
    (folder / "model.safetensors.index.json").write_text(json.dumps({"metadata": {}, "weight_map": index}))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    add_faces(folder)
    make(folder)


if __name__ == "__main__":
    main()
