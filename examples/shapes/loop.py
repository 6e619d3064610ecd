"""One training stage: a resumable loop with atomic checkpoints, EMA, a cosine schedule and a log to plot."""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from checkpoints import TrainingError, load_step, save_step
from ranks import average_gradients, first_alone, rank, spread
from recipe import Stage
from torch import Tensor, nn

LOG_EVERY = 50


@dataclass(frozen=True)
class Draw:
    """The random numbers of one step of one process: they follow from the seed, so a resumed run repeats none."""

    numpy: np.random.Generator
    torch: torch.Generator

    @classmethod
    def of(cls, seed: int, stage: Stage, step: int) -> Draw:
        number = ((seed * 97 + stage.number) * 1_000_003 + step) * 64 + rank()
        return cls(
            np.random.default_rng([seed, stage.number, step, rank()]),
            torch.Generator().manual_seed(number),
        )


Losses = Callable[[int, Draw], dict[str, Tensor]]
Watch = Callable[[int], dict[str, float]]


def run_stage(
    stage: Stage,
    model: nn.Module,
    losses: Losses,
    folder: Path,
    seed: int,
    watch: Watch | None = None,
    watch_every: int = 500,
) -> None:
    """Trains the parameters of `model` that want gradients, and leaves their average in it.

    losses(step, draw) returns named losses of this process's share; their sum is minimized, and names that begin with
    "_" are only logged. watch(step) returns further numbers for the log, measured on the average. Continues from the
    newest whole checkpoint in `folder`. Raises TrainingError on a non-finite loss.
    """
    parameters = [p for p in model.parameters() if p.requires_grad]
    optimizer = _optimizer(stage, parameters)
    average = [p.detach().clone() for p in parameters]
    folder.mkdir(parents=True, exist_ok=True)
    with first_alone():
        step = load_step(folder, stage.name, parameters, average, optimizer)
    spread([*parameters, *average])
    log = _Log(folder / f"{stage.name}.jsonl", stage.name, step)
    saved = time.monotonic()
    while step < stage.steps:
        parts = losses(step, Draw.of(seed, stage, step))
        _update(stage, step, parameters, optimizer, parts)
        step += 1
        decay = min(stage.ema, step / (step + 10))
        torch._foreach_lerp_(average, [p.detach() for p in parameters], 1 - decay)
        log.add(parts)
        watched = watch is not None and (step % watch_every == 0 or step == stage.steps)
        if rank() == 0 and (step % LOG_EVERY == 0 or watched or step == stage.steps):
            further: dict[str, float] = {}
            if watched and watch is not None:
                with averaged(parameters, average):
                    further = watch(step)
            log.write(step, further)
        if rank() == 0 and (time.monotonic() - saved > stage.save_every or step == stage.steps):
            save_step(folder, stage.name, step, parameters, average, optimizer)
            saved = time.monotonic()
    with torch.no_grad():
        for p, value in zip(parameters, average, strict=True):
            p.copy_(value)


def _optimizer(stage: Stage, parameters: Sequence[nn.Parameter]) -> torch.optim.Optimizer:
    groups = [
        {"params": [p for p in parameters if p.ndim >= 2], "weight_decay": stage.weight_decay},
        {"params": [p for p in parameters if p.ndim < 2], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=stage.lr, betas=(0.9, 0.99), fused=True)


def _update(
    stage: Stage,
    step: int,
    parameters: Sequence[nn.Parameter],
    optimizer: torch.optim.Optimizer,
    parts: dict[str, Tensor],
) -> None:
    """One optimizer step on the sum of `parts`. Raises TrainingError, before anything changes, if it is not finite."""
    for group in optimizer.param_groups:
        group["lr"] = stage.lr * stage.rate(step)
    total = torch.stack([value for name, value in parts.items() if not name.startswith("_")]).sum()
    optimizer.zero_grad(set_to_none=True)
    torch.autograd.backward(total)
    average_gradients(parameters)
    norm = nn.utils.clip_grad_norm_(parameters, stage.clip)
    if not torch.isfinite(total + norm):
        found = {name: float(value.detach()) for name, value in parts.items()}
        raise TrainingError(f"{stage.name}: the loss or its gradient is not finite at step {step}: {found}")
    optimizer.step()


class _Log:
    """Means of the losses since the last record, one JSON object per line."""

    def __init__(self, path: Path, stage: str, first: int) -> None:
        self.path, self.stage, self.first = path, stage, first
        self.started = time.monotonic()
        self.sums: dict[str, float] = {}
        self.count = 0

    def add(self, parts: dict[str, Tensor]) -> None:
        for name, value in parts.items():
            self.sums[name] = self.sums.get(name, 0.0) + float(value.detach())
        self.count += 1

    def write(self, step: int, further: dict[str, float]) -> None:
        seconds = time.monotonic() - self.started
        record: dict[str, float] = {"step": step, "seconds": round(seconds, 1)}
        record |= {name: round(total / self.count, 5) for name, total in self.sums.items()}
        record |= {"per_second": round((step - self.first) / seconds, 3), **further}
        with self.path.open("a", encoding="utf-8") as file:
            file.write(json.dumps(record) + "\n")
        print(self.stage, json.dumps(record), flush=True)
        self.sums, self.count = {}, 0


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
