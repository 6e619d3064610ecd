"""A stand-in for a model of the shapes world that draws and answers rightly, except where it is told not to."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from flashjanus.api.janusflow import ROWS_AT_ONCE
from flashjanus.measure.evaluation import world
from flashjanus.measure.evaluation.sets import ceiling_scenes, prompt_set, question_set
from PIL import Image

SAMPLES = 4


@dataclass
class OracleModel:
    """Draws prompt k of `prompt_set(SAMPLES)` for seed k, but black for the seeds in `blank`; answers every question of
    `question_set(SAMPLES)` in capitals, but `wrong` topics with "maybe". Its latents hold numbers of ceiling scenes."""

    name: str = "oracle"
    device: str = "cpu"
    dtype: str = "torch.float32"
    numerics: str = "exact"
    quantization: str | None = None
    why: str = "cpu (asked for), torch.float32 (asked for)"
    size: int = world.SIZE
    blank: frozenset[int] = frozenset()
    wrong: frozenset[str] = frozenset()
    calls: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self.prompts = prompt_set(SAMPLES)
        self.answers = {
            (world.render(asked.scene).tobytes(), asked.question.text): asked.question
            for asked in question_set(SAMPLES)
        }
        self.processor = SimpleNamespace(preprocess=lambda image: torch.tensor(np.array(image)).permute(2, 0, 1) / 255)

    def from_pretrained(self, name: str, **options: Any) -> OracleModel:
        self.calls.append(("from_pretrained", {"name": name, **options}))
        return self

    def generate_image(
        self, prompt: list[str], *, seed: int, num_inference_steps: int, callback_on_step_end: Any, **options: Any
    ) -> Any:
        self.calls.append(("generate_image", {"prompt": prompt, "seed": seed, "steps": num_inference_steps, **options}))
        assert len(prompt) <= ROWS_AT_ONCE
        for step in range(num_inference_steps):
            assert callback_on_step_end(self, step, 0.0, {"latents": None}) == {"latents": None}
        images = []
        for number, text in enumerate(prompt, seed):
            wanted = self.prompts[number]
            assert text == wanted.text
            pixels = world.render(wanted.scene) * (number not in self.blank)
            images.append(Image.fromarray(pixels.astype(np.uint8)).resize((self.size, self.size)))
        return SimpleNamespace(images=images)

    def chat(self, messages: Sequence[Any], *, max_new_tokens: int, do_sample: bool) -> list[str]:
        self.calls.append(("chat", {"messages": messages, "max_new_tokens": max_new_tokens, "do_sample": do_sample}))
        replies = []
        for ((image, text),) in ([turn["content"] for turn in conversation] for conversation in messages):
            question = self.answers[np.asarray(image["image"]).tobytes(), text["text"]]
            replies.append("maybe" if question.topic in self.wrong else f" {question.answer.upper()}\n")
        return replies

    def encode_images(self, pixel_values: torch.Tensor) -> torch.Tensor:
        """(B, 16, 3): the mean color of every 16 x 16 patch."""
        return torch.nn.functional.avg_pool2d(pixel_values, pixel_values.shape[-1] // 4).flatten(2).transpose(1, 2)

    def decode_latents(self, latents: torch.Tensor) -> torch.Tensor:
        scenes = ceiling_scenes(len(latents))
        renders = [torch.tensor(world.render(scenes[int(number)])) for number in latents[:, 0, 0, 0]]
        return torch.stack(renders).permute(0, 3, 1, 2) / 127.5 - 1
