"""Quantizes the language model's linears to 8 bits with one float32 scale per row, and measures the loss.

Each row is quantized by itself. The result under the official names therefore stacks to exactly what `quantization=`
makes of the stacked projections at load: both quantize the stored values, whatever dtype the model computes in. 4-bit
weights are made from int8 and stored as int8. Memory holds one tensor of the checkpoint at a time.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable
from dataclasses import dataclass
from functools import reduce
from operator import add
from pathlib import Path

import torch

from flashjanus.checkpoint.files import Checkpoint
from flashjanus.checkpoint.layout import Target, scale_name, weight_layout
from flashjanus.checkpoint.load import mismatch, quantize_rows, stored_name
from flashjanus.checkpoint.quantizations import QUANTIZATIONS
from flashjanus.checkpoint.sources import TensorInfo
from flashjanus.checkpoint.write import SHARD_BYTES, Shards
from flashjanus.disk.paths import cannot_read
from flashjanus.disk.writing import new_folder
from flashjanus.engine.formats import Loss
from flashjanus.engine.formats.tiles import Tiles
from flashjanus.engine.runtime.isolation import callers_state, isolated
from flashjanus.errors import CheckpointError, InputError

Progress = Callable[[int], None]
"""Called with the number of tensors done."""


def quantizable(checkpoint: Checkpoint) -> dict[str, Target]:
    """Name -> target of each tensor to quantize. Raises CheckpointError, InputError if the checkpoint cannot be."""
    if checkpoint.config.quantization is not None:
        raise InputError(
            f"{checkpoint.source}: expected a checkpoint with float weights, got one in "
            f"{checkpoint.config.quantization}; use the checkpoint that it was made from"
        )
    layout, stored = weight_layout(checkpoint.config), checkpoint.weights.names()
    problem = mismatch(layout, checkpoint.weights)
    if problem is not None:
        raise CheckpointError(problem)
    parts = [(stored_name(part, stored), target) for target in layout if target.quantizable for part in target.sources]
    return {name: target for name, target in parts if name is not None}


@isolated()
def quantize_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    method: str = "int8",
    *,
    progress: Progress = lambda done: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `checkpoint`, quantized by `method`, to `folder`: weights, text files and VAE, completely or not at all.

    Raises CheckpointError, InputError, and OutputError if `folder` cannot be written or is not empty.
    """
    changed, quantization = set(quantizable(checkpoint)), QUANTIZATIONS[method]
    dtype: torch.dtype = getattr(torch, quantization.stored)
    source, vae = checkpoint.weights, checkpoint.vae
    vae_files = {} if vae is None else vae.files
    tensors: dict[str, TensorInfo] = {}
    for name, info in source.names().items():
        tensors[name] = info
        if name in changed:
            rows = info.shape[0]
            tensors[name] = TensorInfo(info.shape, quantization.stored, math.prod(info.shape))
            tensors[scale_name(name)] = TensorInfo((rows,), "float32", 4 * rows)
    with new_folder(folder) as partial:
        shards = Shards(partial, tensors, shard_bytes)
        for done, name in enumerate(source.names(), 1):
            tensor = source.read(name)
            if name in changed:
                tensor, scale = quantized(tensor, dtype, f"{source.label}: {name}")
                shards.write(scale_name(name), scale)
            shards.write(name, tensor)
            with callers_state():
                progress(done)
        source.close()
        what = {"method": method, "bits": quantization.bits, "what": "linears of the language model, by row"}
        config = {**checkpoint.config_dict, "quantization_config": what}
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, path in checkpoint.text_files.items():
            _copy(path, partial / name)
        if vae is not None:
            (partial / "vae").mkdir()
            for name, path in vae_files.items():
                _copy(path, partial / "vae" / name)
            if "config.json" not in vae_files:
                (partial / "vae/config.json").write_text(json.dumps(vae.config_dict, indent=2) + "\n", encoding="utf-8")


def _copy(path: Path, to: Path) -> None:
    try:
        source = open(path, "rb")  # noqa: SIM115 (a failure here is not a failure to write)
    except OSError as error:
        raise cannot_read(path, error) from None
    with source, open(to, "xb") as copy:
        shutil.copyfileobj(source, copy)


def quantized(weight: torch.Tensor, dtype: torch.dtype, label: str) -> tuple[torch.Tensor, torch.Tensor]:
    """q (N, K) and scale (N,) float32 of a weight, the same as when it is loaded. Raises as `quantize_rows` does."""
    q, scale = torch.empty(weight.shape, dtype=dtype), torch.empty(len(weight), dtype=torch.float32)
    quantize_rows(weight, q, scale, label)
    return q, scale


@dataclass(frozen=True)
class LinearError:
    """The loss of one linear, or of several."""

    name: str
    loss: Loss

    @property
    def kind(self) -> str:
        """The projection: q_proj, ..., lm_head."""
        return self.name.removesuffix(".weight").rpartition(".")[2]

    def to_json(self) -> dict[str, object]:
        loss = self.loss
        return {"name": self.name, "kind": self.kind, "relative_error": loss.relative, "cosine": loss.cosine}


@isolated()
def quantization_errors(
    checkpoint: Checkpoint, progress: Progress = lambda done: None, method: str = "int8"
) -> list[LinearError]:
    """The loss of each linear to quantize, in the checkpoint's order. Raises as `quantizable` and `quantized` do.

    int4: the loss of the weights used to decode a few rows. A linear without a 4-bit format, like the head, is in int8.
    """
    found = []
    for done, (name, target) in enumerate(quantizable(checkpoint).items(), 1):
        kept = target.weight(torch.float32, method, tiled=True)
        assert kept is not None
        fmt, weight = kept.formats[-1], checkpoint.weights.read(name)
        stored = getattr(torch, QUANTIZATIONS[method].stored)
        q, scale = quantized(weight, stored, f"{checkpoint.weights.label}: {name}")
        found.append(LinearError(name, (fmt.stored if isinstance(fmt, Tiles) else fmt).loss(weight, q, scale)))
        with callers_state():
            progress(done)
    checkpoint.weights.close()
    return found


def format_errors(errors: list[LinearError], method: str = "int8") -> str:
    """One row per kind of linear, with norms over all of that kind, and the worst linear named."""
    lines = [f"  {method:<10} {'linears':>7} {'error':>9} {'cosine':>9}  worst"]
    for kind in dict.fromkeys(error.kind for error in errors):
        of = [error for error in errors if error.kind == kind]
        worst = max(of, key=lambda error: error.loss.relative)
        most, all_of = worst.loss.relative, _pooled(of)
        lines.append(f"  {kind:<10} {len(of):7d} {all_of.relative:9.5f} {all_of.cosine:9.6f}  {most:.5f} {worst.name}")
    total = _pooled(errors)
    return "\n".join([*lines, f"  {'all':<10} {len(errors):7d} {total.relative:9.5f} {total.cosine:9.6f}"])


def _pooled(errors: list[LinearError]) -> Loss:
    return reduce(add, (error.loss for error in errors))
