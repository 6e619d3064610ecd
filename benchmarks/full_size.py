"""Write a JanusFlow of the published sizes with random weights, in the official layout, for what starts on disk.

    python benchmarks/full_size.py FOLDER            # 4.1 GB of bf16 shards, their index, config.json
    flashjanus bench latency --model FOLDER --stages load,prepare,step,SigLIP,prefill,token --peer torch

Random weights draw noise, but every shape, layout and byte is that of the published checkpoint, and so is the time.
Without a folder: `flashjanus bench latency --random-weights full`.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import torch
from flashjanus.benchmarking.models import SeededState, configs
from flashjanus.benchmarking.stages import CHAT_TOKENS, PROMPT_TOKENS
from flashjanus.checkpoint import JanusFlowConfig, weight_layout
from safetensors.torch import save_file

ROOT = Path(__file__).parents[1]
SHARD_BYTES = 2**30
__all__ = ["CHAT_TOKENS", "PROMPT_TOKENS", "ROOT", "config", "make"]


def config() -> dict[str, Any]:
    """The published config.json."""
    return configs("full")[0]


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
    make(parser.parse_args().folder)


if __name__ == "__main__":
    main()
