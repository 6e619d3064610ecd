"""Linears of the language model in 8 bits, one float32 scale a row: a checkpoint written so, and what it loses.

Rows are quantised alone, so what is written under the official names stacks to what `quantization=` makes of the
stacked projections at load, in the dtype that the checkpoint has. 4 bits are made from int8, and stored as that. Memory
holds one tensor of the checkpoint at a time.
"""

from __future__ import annotations

import json
import math
import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path

import torch

from flashjanus.checkpoint.files import Checkpoint
from flashjanus.checkpoint.layout import scale_name, weight_layout
from flashjanus.checkpoint.load import CHUNK_BYTES, check_finite, check_layout, stored_name, summarise
from flashjanus.checkpoint.quantizations import QUANTIZATIONS
from flashjanus.checkpoint.sources import TensorInfo
from flashjanus.checkpoint.write import SHARD_BYTES, Shards, new_folder
from flashjanus.engine.ops import nibbles
from flashjanus.engine.ops.quantise import quantise
from flashjanus.errors import CheckpointError, InputError

Progress = Callable[[int], None]
"""Takes the number of tensors done."""


def quantisable(checkpoint: Checkpoint) -> list[str]:
    """Names of the tensors that quantisation changes. CheckpointError, InputError where it cannot be quantised."""
    if checkpoint.config.quantization is not None:
        raise InputError(
            f"{checkpoint.source}: expected a checkpoint of floats, got one in {checkpoint.config.quantization}; "
            "use the one that it was made from"
        )
    layout, stored = weight_layout(checkpoint.config), checkpoint.weights.names()
    problems = check_layout(layout, checkpoint.weights)
    if problems:
        raise CheckpointError(summarise(checkpoint.weights.label, problems))
    names = [stored_name(source, stored) for target in layout if target.quantisable for source in target.sources]
    return [name for name in names if name is not None]


def quantise_checkpoint(
    checkpoint: Checkpoint,
    folder: Path,
    method: str = "int8",
    *,
    progress: Progress = lambda done: None,
    shard_bytes: int = SHARD_BYTES,
) -> None:
    """Write `checkpoint` quantised by `method` to `folder`, whole or not at all: weights, text files and VAE.

    Raises CheckpointError, InputError, and OutputError where `folder` cannot be written or holds something.
    """
    changed, quantization = set(quantisable(checkpoint)), QUANTIZATIONS[method]
    dtype: torch.dtype = getattr(torch, quantization.stored)
    source, vae = checkpoint.weights, checkpoint.vae
    vae_files = [] if vae is None else [*vae.folder.glob("*.json"), *vae.weights.paths]
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
                tensor, scale = quantised(tensor, dtype, f"{source.label}: {name}")
                shards.write(scale_name(name), scale)
            shards.write(name, tensor)
            progress(done)
        source.close()
        what = {"method": method, "bits": quantization.bits, "what": "linears of the language model, by row"}
        config = {**checkpoint.config_dict, "quantization_config": what}
        (partial / "config.json").write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
        for name, path in checkpoint.text_files.items():
            shutil.copyfile(path, partial / name)
        for path in vae_files:
            (partial / "vae").mkdir(exist_ok=True)
            shutil.copyfile(path, partial / "vae" / path.name)


def quantised(weight: torch.Tensor, dtype: torch.dtype, label: str) -> tuple[torch.Tensor, torch.Tensor]:
    """q (N, K) and scale (N,) float32 of a weight. CheckpointError where it is not finite in float32."""
    q, scale = torch.empty(weight.shape, dtype=dtype), torch.empty(len(weight))
    for rows in _chunks(weight):
        part = weight[rows].to(torch.float32, copy=True)
        quantise(part, q[rows], scale[rows])
        if not scale[rows].isfinite().all():
            check_finite(weight[rows], weight[rows].float(), label)
    return q, scale


@dataclass(frozen=True)
class LinearError:
    """What is lost of a linear, or of several: sums of squares of W, of Wq, of Wq - W, and of products W Wq."""

    name: str
    weight: float
    quantised: float
    difference: float
    product: float

    @property
    def kind(self) -> str:
        """The projection: q_proj, ..., lm_head."""
        return self.name.removesuffix(".weight").rpartition(".")[2]

    @property
    def relative(self) -> float:
        """||Wq - W|| / ||W||; 0 for zeros."""
        return math.sqrt(self.difference / self.weight) if self.weight else 0.0

    @property
    def cosine(self) -> float:
        """<Wq, W> / (||Wq|| ||W||); 1 for zeros."""
        return self.product / math.sqrt(self.weight * self.quantised) if self.weight and self.quantised else 1.0

    def to_json(self) -> dict[str, object]:
        return {"name": self.name, "kind": self.kind, "relative_error": self.relative, "cosine": self.cosine}


def quantisation_errors(
    checkpoint: Checkpoint, progress: Progress = lambda done: None, method: str = "int8"
) -> list[LinearError]:
    """Of every linear that quantisation changes, in the checkpoint's order. Raises as `quantisable` and `quantised`.

    int4: of what few rows are decoded on; a linear that is not in 4 bits, such as the head, is in int8.
    """
    found = []
    for done, name in enumerate(quantisable(checkpoint), 1):
        found.append(_error(name, checkpoint.weights.read(name), checkpoint.weights.label, method))
        progress(done)
    checkpoint.weights.close()
    return found


def format_errors(errors: list[LinearError], method: str = "int8") -> str:
    """A row for each kind of linear, the norms taken over all of them, with the worst named."""
    lines = [f"  {method:<10} {'linears':>7} {'error':>9} {'cosine':>9}  worst"]
    for kind in dict.fromkeys(error.kind for error in errors):
        of = [error for error in errors if error.kind == kind]
        worst = max(of, key=lambda error: error.relative)
        all_of = _pooled(kind, of)
        lines.append(
            f"  {kind:<10} {len(of):7d} {all_of.relative:9.5f} {all_of.cosine:9.6f}  {worst.relative:.5f} {worst.name}"
        )
    total = _pooled("all", errors)
    return "\n".join([*lines, f"  {'all':<10} {len(errors):7d} {total.relative:9.5f} {total.cosine:9.6f}"])


def _pooled(name: str, errors: list[LinearError]) -> LinearError:
    sums = [sum(getattr(e, part) for e in errors) for part in ("weight", "quantised", "difference", "product")]
    return LinearError(name, *sums)


def _error(name: str, weight: torch.Tensor, label: str, method: str) -> LinearError:
    q, scale = quantised(weight, getattr(torch, QUANTIZATIONS[method].stored), f"{label}: {name}")
    if method == "int4" and "lm_head" not in name and nibbles.fits(*weight.shape):
        q, scale = nibbles.dequantise(*nibbles.of_int8(q, scale)), torch.ones(len(weight))
    sums = torch.zeros(4, dtype=torch.float64)
    for rows in _chunks(weight):
        exact, held = weight[rows].double(), q[rows].double() * scale[rows, None].double()
        pairs = ((exact, exact), (held, held), (held - exact, held - exact), (exact, held))
        sums += torch.stack([(a * b).sum() for a, b in pairs])
    return LinearError(name, *sums.tolist())


def _chunks(weight: torch.Tensor) -> Iterator[slice]:
    """Rows that are about CHUNK_BYTES in float32."""
    step = max(1, CHUNK_BYTES // (4 * math.prod(weight.shape[1:])))
    return (slice(start, start + step) for start in range(0, len(weight), step))
