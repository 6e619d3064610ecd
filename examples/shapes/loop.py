"""One training stage: a resumable loop with atomic checkpoints, EMA, a cosine schedule and a log to plot."""

from __future__ import annotations

import json
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from recipe import Stage
from torch import Tensor, nn

KEPT = 2


class TrainingError(RuntimeError):
    """Training cannot go on; the last checkpoint is whole."""


@dataclass(frozen=True)
class Draw:
    """The random numbers of one step: they follow from seed, stage and step, so a resumed run repeats none."""

    numpy: np.random.Generator
    torch: torch.Generator


class Average:
    """Exponential moving average of parameters, in fp32."""

    def __init__(self, parameters: Sequence[Tensor]) -> None:
        self.values = [p.detach().clone() for p in parameters]

    @torch.no_grad()
    def update(self, parameters: Sequence[Tensor], decay: float) -> None:
        torch._foreach_lerp_(self.values, [p.detach() for p in parameters], 1 - decay)


def run_stage(
    stage: Stage,
    model: nn.Module,
    losses: Callable[[int, Draw], dict[str, Tensor]],
    folder: Path,
    seed: int,
    watch: Callable[[int], dict[str, float]] | None = None,
    watch_every: int = 500,
) -> None:
    """Trains the parameters of `model` that want gradients, and leaves their average in it.

    losses(step, draw) returns named losses; their sum is minimised, and names that begin with "_" are only logged.
    Continues from the newest whole checkpoint under `folder`. Raises TrainingError on a non-finite loss.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": stage.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    optimizer = torch.optim.AdamW(groups, lr=stage.lr, betas=(0.9, 0.99), fused=True)
    average = Average(parameters)
    step = _resume(stage, folder, parameters, optimizer, average)
    log = folder / f"{stage.name}.jsonl"
    saved = started = time.monotonic()
    first, sums, count = step, dict[str, float](), 0
    while step < stage.steps:
        for group in optimizer.param_groups:
            group["lr"] = stage.lr * stage.rate(step)
        draw = Draw(
            np.random.default_rng([seed, stage.number, step]),
            torch.Generator().manual_seed((seed * 97 + stage.number) * 1_000_003 + step),
        )
        parts = losses(step, draw)
        total = torch.stack([value for name, value in parts.items() if not name.startswith("_")]).sum()
        optimizer.zero_grad(set_to_none=True)
        total.backward()
        norm = nn.utils.clip_grad_norm_(parameters, stage.clip)
        if not torch.isfinite(total + norm):
            raise TrainingError(f"{stage.name}: the loss or its gradient is not finite at step {step}: {parts}")
        optimizer.step()
        step += 1
        average.update(parameters, min(stage.ema, step / (step + 10)))
        for name, value in parts.items():
            sums[name] = sums.get(name, 0.0) + float(value.detach())
        count += 1
        watched = watch is not None and (step % watch_every == 0 or step == stage.steps)
        if step % 50 == 0 or watched or step == stage.steps:
            record: dict[str, float] = {"step": step, "seconds": round(time.monotonic() - started, 1)}
            record |= {name: round(total / count, 5) for name, total in sums.items()}
            record["per_second"] = round((step - first) / (time.monotonic() - started), 3)
            if watched and watch is not None:
                with averaged(parameters, average.values):
                    record |= watch(step)
            with log.open("a", encoding="utf-8") as file:
                file.write(json.dumps(record) + "\n")
            print(stage.name, json.dumps(record), flush=True)
            sums, count = {}, 0
        if time.monotonic() - saved > stage.save_every or step == stage.steps:
            _save(stage, folder, step, parameters, optimizer, average)
            saved = time.monotonic()
    with torch.no_grad():
        for p, value in zip(parameters, average.values, strict=True):
            p.copy_(value)


class averaged:
    """Within it, the parameters hold their averages."""

    def __init__(self, parameters: Sequence[Tensor], values: Sequence[Tensor]) -> None:
        self.parameters, self.values = parameters, values

    def __enter__(self) -> None:
        self._swap()

    def __exit__(self, *exception: object) -> None:
        self._swap()

    def _swap(self) -> None:
        for p, value in zip(self.parameters, self.values, strict=True):
            p.data, value.data = value.data, p.data


def save_atomically(content: object, path: Path) -> None:
    """Writes `path` whole or not at all, also when the machine stops in between."""
    partial = path.with_suffix(".partial")
    with partial.open("wb") as file:
        torch.save(content, file)
        file.flush()
        os.fsync(file.fileno())
    partial.replace(path)


def _checkpoints(stage: Stage, folder: Path) -> list[Path]:
    """Newest first."""
    return sorted(folder.glob(f"{stage.name}-*.pt"), reverse=True)


def _save(
    stage: Stage, folder: Path, step: int, parameters: list[Tensor], optimizer: torch.optim.Optimizer, average: Average
) -> None:
    content = {
        "step": step,
        "parameters": [p.detach() for p in parameters],
        "average": average.values,
        "optimizer": optimizer.state_dict(),
    }
    save_atomically(content, folder / f"{stage.name}-{step:08d}.pt")
    for old in _checkpoints(stage, folder)[KEPT:]:
        old.unlink()


def _resume(
    stage: Stage, folder: Path, parameters: list[Tensor], optimizer: torch.optim.Optimizer, average: Average
) -> int:
    folder.mkdir(parents=True, exist_ok=True)
    for path in _checkpoints(stage, folder):
        try:
            content = torch.load(path, weights_only=True)
        except (OSError, RuntimeError, EOFError) as error:  # damaged: the one before it serves
            print(f"{path} cannot be read ({error}); trying an older one", flush=True)
            continue
        with torch.no_grad():
            for p, value in zip(parameters, content["parameters"], strict=True):
                p.copy_(value)
        average.values = content["average"]
        optimizer.load_state_dict(content["optimizer"])
        return int(content["step"])
    return 0
