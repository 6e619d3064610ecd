"""Suggests where missing files may be, as sentence endings for errors. Nothing here raises or reads a file."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from flashjanus.disk.paths import unfinished

_OTHER_FORMATS = (".gguf", ".ckpt", ".pt", ".pth", ".msgpack", ".h5", ".onnx", ".npz", ".distcp", ".bin")


def no_config(folder: Path, names: Sequence[str]) -> str:
    """Hint for a folder without config.json."""
    if "adapter_config.json" in names:
        return (
            "; the folder holds only a PEFT adapter: load its base model, and this folder by load_adapter or --adapter"
        )
    if os.path.isdir(folder / "snapshots"):
        return "; this is a repository in the hub's cache: give one of the folders in its snapshots, or the hub id"
    inner = [name for name in names if name != "vae" and os.path.isfile(folder / name / "config.json")]
    if inner:
        return f"; there is one in {', '.join(inner[:3])}: give that folder"
    outer = folder.absolute().parent
    if os.path.isfile(outer / "config.json"):
        return f"; there is one in {outer}: copy it and the tokenizer's files beside the weights"
    return unfinished(folder)


def no_weights(folder: Path, names: Sequence[str]) -> str:
    """Hint for a folder without weights."""
    if "zero_to_fp32.py" in names:
        return "; run zero_to_fp32.py, which DeepSpeed left there, to merge its parts"
    inner = [name for name in names if name.startswith("checkpoint-") and os.path.isdir(folder / name)]
    if inner:
        return f"; give one of the folders in it: {', '.join(inner[:3])}"
    other = [name for name in names if name.endswith(_OTHER_FORMATS)]
    return unfinished(folder) or (f"; got {', '.join(other[:3])}" if other else "")
