"""How much of everything the training takes: sizes, steps and shares; the defaults are those of the shipped weights."""

from __future__ import annotations

import math
from dataclasses import dataclass


@dataclass(frozen=True)
class Stage:
    """What one stage runs. lr: peak learning rate, reached after `warmup` steps; it falls to zero by a cosine.

    number: tells the stages' random streams apart. ema: decay of the parameters' average. save_every: seconds.
    """

    name: str
    number: int
    steps: int
    lr: float
    warmup: int = 100
    weight_decay: float = 0.01
    ema: float = 0.99
    clip: float = 1.0
    save_every: float = 60.0

    def rate(self, step: int) -> float:
        """Share of the peak learning rate at `step`."""
        return min(1.0, (step + 1) / self.warmup) * 0.5 * (1 + math.cos(math.pi * step / self.steps))


@dataclass(frozen=True)
class Recipe:
    """prompts x levels pictures are drawn a step, and asked x questions questions answered.

    scenes: drawn ones, whose latents are kept. alignment: weight of the representation alignment loss, 0 for none;
    middle: the block after which it is taken. drop: share of the pictures drawn without a prompt.
    shared: the generation encoder serves both faces, to compare with; all else, alignment included, stays as it is.
    """

    scenes: int = 40_000
    vae: Stage = Stage("vae", 1, steps=1600, lr=2e-3, weight_decay=0.0)
    vit: Stage = Stage("vit", 2, steps=700, lr=1e-3)
    answer: Stage = Stage("answer", 3, steps=700, lr=1e-3)
    adapt: Stage = Stage("adapt", 4, steps=150, lr=1e-3, warmup=50)
    pretrain: Stage = Stage("pretrain", 5, steps=6000, lr=1e-3)
    tune: Stage = Stage("tune", 6, steps=400, lr=3e-4, warmup=50)
    prompts: int = 24
    levels: int = 4
    asked: int = 6
    questions: int = 4
    alignment: float = 0.5
    middle: int = 3
    shared: bool = False
    drop: float = 0.1
    answer_weight: float = 0.1
