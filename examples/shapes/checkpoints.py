"""Checkpoints of one training stage: written whole or not at all, the newest whole one read back.

A file holds what goes on from `step`: the trained parameters in their model's order, their average, the optimizer.
"""

from __future__ import annotations

import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from flashjanus.disk.writing import whole
from torch import Tensor

KEPT = 2
_DAMAGED = (OSError, RuntimeError, EOFError, pickle.UnpicklingError)


class TrainingError(Exception):
    """Training cannot go on; the last checkpoint is whole."""


def save_atomically(content: object, path: Path) -> None:
    """Writes `path` whole or not at all, also when the machine stops in between."""
    with whole(path, durable=True) as file:
        torch.save(content, file)


def save_step(
    folder: Path,
    stage: str,
    step: int,
    parameters: Sequence[Tensor],
    average: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> None:
    """Writes the checkpoint of `step`, and removes all but the newest KEPT."""
    content = {
        "step": step,
        "parameters": [p.detach() for p in parameters],
        "average": list(average),
        "optimizer": optimizer.state_dict(),
    }
    save_atomically(content, folder / f"{stage}-{step:08d}.pt")
    for old in _newest_first(folder, stage)[KEPT:]:
        old.unlink()


def load_step(
    folder: Path,
    stage: str,
    parameters: Sequence[Tensor],
    average: Sequence[Tensor],
    optimizer: torch.optim.Optimizer,
) -> int:
    """The step of the newest whole checkpoint, whose contents are put in place; 0 where there is none.

    A damaged one is set aside, so that it never pushes a whole one out.
    """
    for path in _newest_first(folder, stage):
        try:
            content = _load(path, parameters)
        except _DAMAGED as error:
            print(f"{path} cannot be read ({error}); trying an older one", flush=True)
            path.replace(path.with_suffix(".damaged"))
            continue
        _fill(parameters, content["parameters"])
        _fill(average, content["average"])
        optimizer.load_state_dict(content["optimizer"])
        return int(content["step"])
    return 0


def load_finished(folder: Path, stage: str, parameters: Sequence[Tensor], steps: int) -> None:
    """Puts what a finished stage left into `parameters`; `folder` is only read. Raises TrainingError."""
    path = folder / f"{stage}-{steps:08d}.pt"
    if not path.is_file():
        raise TrainingError(f"{path} is missing: expected a run whose stage {stage!r} ended after {steps} steps")
    try:
        _fill(parameters, _load(path, parameters)["average"])
    except _DAMAGED as error:
        raise TrainingError(f"{path} cannot be read: {error}") from error


def _newest_first(folder: Path, stage: str) -> list[Path]:
    return sorted(folder.glob(f"{stage}-{'[0-9]' * 8}.pt"), reverse=True)


def _load(path: Path, parameters: Sequence[Tensor]) -> dict[str, Any]:
    device = parameters[0].device
    content: dict[str, Any] = torch.load(path, weights_only=True, map_location=device)
    shapes = [tuple(p.shape) for p in content["parameters"]]
    if shapes != [tuple(p.shape) for p in parameters]:
        raise TrainingError(f"{path} is of a model of other sizes; use another folder, or the recipe that wrote it")
    return content


@torch.no_grad()
def _fill(tensors: Sequence[Tensor], values: Sequence[Tensor]) -> None:
    for tensor, value in zip(tensors, values, strict=True):
        tensor.copy_(value)
