"""Writes a checkpoint's weights: shards that receive their tensors one by one, and their index."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path

import torch

from flashjanus.checkpoint.sources import SAFETENSORS_DTYPES, TensorInfo
from flashjanus.errors import CheckpointError

SHARD_BYTES = 4 * 2**30
_CODES = {str(dtype).removeprefix("torch."): code for code, dtype in SAFETENSORS_DTYPES.items()}


class Shards:
    """Files model-i-of-n.safetensors with their index; each has at most `shard_bytes`, or a single tensor.

    `tensors` states what will be written, in any order; none of it is held in memory until then. Raises CheckpointError
    for a dtype that the format does not have.
    """

    def __init__(self, folder: Path, tensors: Mapping[str, TensorInfo], shard_bytes: int = SHARD_BYTES) -> None:
        shards: list[dict[str, TensorInfo]] = []
        size = 0
        for name, info in tensors.items():
            if info.dtype not in _CODES:
                raise CheckpointError(f"{name}: {info.dtype} cannot be written; expected one of {', '.join(_CODES)}")
            size += info.nbytes
            if not shards or size > shard_bytes:
                shards.append({})
                size = info.nbytes
            shards[-1][name] = info
        self._at: dict[str, tuple[Path, int]] = {}
        for i, shard in enumerate(shards, 1):
            self._lay_out(folder / f"model-{i:05d}-of-{len(shards):05d}.safetensors", shard)
        index = {
            "metadata": {"total_size": sum(info.nbytes for info in tensors.values())},
            "weight_map": {name: self._at[name][0].name for name in tensors},
        }
        (folder / "model.safetensors.index.json").write_text(json.dumps(index, indent=2) + "\n", encoding="utf-8")

    def write(self, name: str, tensor: torch.Tensor) -> None:
        path, offset = self._at.pop(name)
        with open(path, "r+b") as file:
            file.seek(offset)
            file.write(tensor.reshape(-1).contiguous().view(torch.uint8).numpy().data)

    def _lay_out(self, path: Path, shard: Mapping[str, TensorInfo]) -> None:
        """Write the header and extend the file to its final size. Wide dtypes come first, which aligns all tensors."""
        header: dict[str, object] = {"__metadata__": {"format": "pt"}}
        starts, end = {}, 0
        for name, info in sorted(shard.items(), key=lambda item: -getattr(torch, item[1].dtype).itemsize):
            starts[name], end = end, end + info.nbytes
            header[name] = {
                "dtype": _CODES[info.dtype],
                "shape": list(info.shape),
                "data_offsets": [starts[name], end],
            }
        text = json.dumps(header).encode()
        text += b" " * (-len(text) % 8)
        with open(path, "xb") as file:
            file.write(len(text).to_bytes(8, "little") + text)
            file.truncate(8 + len(text) + end)
        self._at.update({name: (path, 8 + len(text) + start) for name, start in starts.items()})
