"""The two faces with the training modules: pictures drawn by plain Euler steps, answers judged token by token."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from autoencoder import AutoencoderKL
from configs import LATENT_CHANNELS, LATENT_SIZE
from data import Encoder, answer_batch, draw_batch
from flashjanus.measure.evaluation import language, world
from flashjanus.measure.evaluation.sets import prompt_set
from flashjanus.measure.evaluation.shapes import Drawn
from flashjanus.measure.evaluation.statistics import shares_by_name
from flashjanus.measure.evaluation.verdict import give_verdict
from janusflow import JanusFlow
from pictures import rendered, to_u8
from PIL import Image
from torch import Tensor


@dataclass(frozen=True)
class Faces:
    """shared: pictures are read by the generation encoder."""

    model: JanusFlow
    vae: AutoencoderKL
    encoder: Encoder
    shared: bool = False

    @property
    def device(self) -> torch.device:
        return next(self.vae.parameters()).device

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def picture_tokens(self, pixels: Tensor, frozen: bool) -> Tensor:
        """Tokens (B, N, D) by which the language model sees pictures; `frozen`: no gradient reaches their encoder.

        With one encoder for both faces it is the generation encoder, which is never frozen.
        """
        if self.shared:
            return self.model.read_latents(self.vae.encode(pixels)[0].float())
        with torch.set_grad_enabled(torch.is_grad_enabled() and not frozen):
            features = self.model.see(pixels)
        return self.model.read(features)

    @torch.no_grad()
    def sample(self, prompts: Sequence[list[int]], noise: Tensor, steps: int, guidance: float) -> Tensor:
        """Latents (B, c, L, L) at t = 1 from noise at t = 0, by Euler steps with classifier-free guidance."""
        count = len(prompts)
        dropped = torch.tensor([False, True]).expand(count, 2)
        batch = draw_batch(prompts, 2, self.model.config.num_image_tokens, dropped, self.device)
        z = noise.to(self.device)
        for k in range(steps):
            t = torch.full((2 * count,), 1000.0 * k / steps, device=self.device)
            v, _ = self.model.velocity(batch.ids, batch.packed, z.repeat_interleave(2, 0), t)
            conditional, unconditional = v.float().view(count, 2, *z.shape[1:]).unbind(1)
            z = z + (guidance * conditional - (guidance - 1) * unconditional) / steps
        return z

    @torch.no_grad()
    def draw(self, samples: int, steps: int, guidance: float) -> list[Drawn]:
        """Pictures of `samples` validation prompts per category, always the same prompts and noise."""
        prompts = prompt_set(samples, seed=1, split="validation")
        ids = [self.encoder.prompt(prompt.text) for prompt in prompts]
        shape = LATENT_CHANNELS, LATENT_SIZE, LATENT_SIZE
        noise = torch.randn(len(ids), *shape, generator=torch.Generator().manual_seed(5))
        drawn = []
        for start in range(0, len(ids), 120):
            here = slice(start, start + 120)
            with self.autocast():
                images = to_u8(self.vae.decode(self.sample(ids[here], noise[here], steps, guidance)))
            drawn += [
                Drawn(p, Image.fromarray(im), give_verdict(p, im)) for p, im in zip(prompts[here], images, strict=True)
            ]
        return drawn

    @torch.no_grad()
    def answer_score(self, questions: int, seed: int = 1) -> dict[str, float]:
        """Share of validation questions answered word for word, by topic and overall.

        A greedy answer is right if, and only if, each of its tokens is the likeliest after the right ones before it.
        """
        shares = {}
        for number, topic in enumerate(language.TOPICS):
            asked = [validation_question(topic, (seed, number, k)) for k in range(questions)]
            batch = answer_batch(self.encoder, [[question] for _, question in asked], self.device)
            x = rendered([scene for scene, _ in asked]).to(self.device)
            with self.autocast():
                seen = self.picture_tokens(x, frozen=True)
                logits = self.model.answers(batch.ids, batch.packed, seen, self.encoder.image_start)
            right = ((logits.argmax(-1) == batch.targets) | (batch.targets == -100)).all(1)
            shares[f"answer_{topic}"] = round(float(right.float().mean()), 3)
        return shares | {"answers": round(float(np.mean(list(shares.values()))), 3)}


def draw_score(drawn: Sequence[Drawn]) -> dict[str, float]:
    """Share of pictures drawn right, by category, and the categories' mean."""
    found = shares_by_name((one.prompt.category, one.verdict.correct) for one in drawn)
    shares = {name: round(share.value, 3) for name, share in found.items()}
    return shares | {"overall": round(float(np.mean(list(shares.values()))), 3)}


def validation_question(topic: language.Topic, seed: tuple[int, ...]) -> tuple[world.Scene, language.Question]:
    """A scene that holds a combination of the validation split, and a question on `topic` about it."""
    rng = np.random.default_rng(seed)
    while True:
        kind = (*language.CAPTIONED, "mixed")[int(rng.integers(len(language.CAPTIONED) + 1))]
        scene = world.sample_scene(rng, "validation", kind)
        question = language.question(rng, scene, topic)
        if question is not None:
            return scene, question
