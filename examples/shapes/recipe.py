"""How much of everything the training takes: sizes, steps and shares; the defaults are those of the shipped weights."""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from flashjanus.disk.writing import write_json


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
class Sizes:
    """Widths and depths of the networks. hidden, layers: of the language model, in heads of 32."""

    hidden: int = 256
    layers: int = 6
    vit_width: int = 192
    vit_layers: int = 4
    vit_heads: int = 6
    vae_widths: tuple[int, int, int, int] = (16, 32, 64, 64)
    vae_groups: int = 8


@dataclass(frozen=True)
class Recipe:
    """prompts x levels pictures are drawn a step, and asked x questions questions answered, by all processes together.

    scenes: drawn ones, whose latents are kept. alignment: weight of the representation alignment loss, 0 for none;
    middle: the block after which it is taken. drop: share of the pictures drawn without a prompt.
    time_mean, time_std: of the logit of t. Where things lie is decided while little but noise is there, and at t = 0.5
    the picture shows it already: with mean 0, prompts that name places stay at chance long after colors are right.
    shared: the generation encoder serves both faces, to compare with; all else, alignment included, stays as it is.
    whitened: scenes over which latents are whitened; checked: those that measure the VAE; ceiling: those whose latents
    go with the model. watched: prompts per category and questions per topic of a watch point, every watch_every steps;
    scored: those of scores.json.
    """

    sizes: Sizes = Sizes()
    scenes: int = 40_000
    vae: Stage = Stage("vae", 1, steps=1600, lr=2e-3, weight_decay=0.0)
    vit: Stage = Stage("vit", 2, steps=700, lr=1e-3)
    answer: Stage = Stage("answer", 3, steps=700, lr=1e-3)
    adapt: Stage = Stage("adapt", 4, steps=100, lr=1e-3, warmup=50)
    pretrain: Stage = Stage("pretrain", 5, steps=10_000, lr=1e-3)
    tune: Stage = Stage("tune", 6, steps=250, lr=3e-4, warmup=50)
    vae_batch: int = 32
    vit_batch: int = 64
    answer_batch: int = 24
    prompts: int = 24
    levels: int = 4
    asked: int = 8
    questions: int = 4
    alignment: float = 0.5
    middle: int = 3
    shared: bool = False
    drop: float = 0.1
    time_mean: float = -1.0
    time_std: float = 1.3
    answer_weight: float = 0.25
    whitened: int = 3000
    checked: int = 300
    ceiling: int = 120
    watched: tuple[int, int] = (16, 40)
    watch_every: int = 750
    scored: tuple[int, int] = (100, 100)

    def stages(self) -> tuple[Stage, ...]:
        """In the order in which they run."""
        return self.vae, self.vit, self.answer, self.adapt, self.pretrain, self.tune

    def pictures(self, stage: str) -> int:
        """Pictures that one step of a stage draws or sees."""
        drawn = self.prompts * self.levels
        both = drawn + self.asked
        counts = {"vae": self.vae_batch, "vit": self.vit_batch, "answer": self.answer_batch, "adapt": drawn}
        return counts.get(stage, both)


def write_recipe(folder: Path, recipe: Recipe, seed: int) -> None:
    write_json(folder / "recipe.json", {"seed": seed, **asdict(recipe)}, durable=True)


def read_recipe(folder: Path) -> Recipe:
    """The counts of pictures per step that a run was made with; the default ones where its folder has no recipe."""
    path = folder / "recipe.json"
    if not path.is_file():
        return Recipe()
    found = json.loads(path.read_text(encoding="utf-8"))
    counts = ("vae_batch", "vit_batch", "answer_batch", "prompts", "levels", "asked")
    values: dict[str, Any] = {name: int(found[name]) for name in counts}
    return replace(Recipe(), **values)


MINIATURE = Recipe(
    sizes=Sizes(64, 2, 64, 2, 2, (8, 8, 16, 16), 4),
    scenes=200,
    vae=Stage("vae", 1, steps=40, lr=4e-3, warmup=5, weight_decay=0.0),
    vit=Stage("vit", 2, steps=30, lr=3e-3, warmup=5),
    answer=Stage("answer", 3, steps=30, lr=3e-3, warmup=5),
    adapt=Stage("adapt", 4, steps=10, lr=3e-3, warmup=5),
    pretrain=Stage("pretrain", 5, steps=40, lr=3e-3, warmup=5),
    tune=Stage("tune", 6, steps=10, lr=1e-3, warmup=5),
    vae_batch=8,
    vit_batch=16,
    answer_batch=8,
    prompts=4,
    asked=4,
    middle=1,
    whitened=100,
    checked=10,
    ceiling=12,
    watched=(1, 2),
    watch_every=20,
    scored=(1, 2),
)
"""A minute on one slow core; it draws nothing that a person recognizes."""
