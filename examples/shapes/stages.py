"""The stages of training the two faces: what each updates, on what, and how it is watched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from autoencoder import AutoencoderKL
from checkpoints import TrainingError, load_finished, save_atomically
from data import AnswerBatch, Encoder, answer_batch, ask, draw_batch, drawn_scenes, normal, seen_scenes
from flashjanus.evaluation import language, world
from flashjanus.evaluation.prompts import prompt_set
from flashjanus.evaluation.verdict import give_verdict
from janusflow import UNDERSTANDING, JanusFlow
from loop import Draw, Losses, run_stage
from recipe import Recipe, Stage
from torch import Tensor, nn
from vae_stage import pixels

GENERATION = ("vision_gen_", "align")
GENERATION_ENCODER = ("vision_gen_enc_",)
LANGUAGE = ("language_model", "vision_und_enc_aligner", "beg_of_und_embed")


@dataclass(frozen=True)
class Base:
    """A run whose VAE, understanding encoder and scenes another run reads; and the seed that they follow from."""

    folder: Path
    seed: int


class Trainer:
    def __init__(
        self,
        model: JanusFlow,
        vae: AutoencoderKL,
        encoder: Encoder,
        folder: Path,
        seed: int,
        recipe: Recipe,
        base: Base | None = None,
    ) -> None:
        self.model, self.vae, self.encoder = model, vae.eval().requires_grad_(False), encoder
        self.folder, self.seed, self.recipe, self.base = folder, seed, recipe, base
        self.device = next(vae.parameters()).device

    def autocast(self) -> torch.autocast:
        return torch.autocast(self.device.type, torch.bfloat16)

    def _run_or_reuse(self, stage: Stage, model: nn.Module, losses: Losses) -> None:
        if self.base is None:
            run_stage(stage, model, losses, self.folder, self.seed)
        else:
            trained = [p for p in model.parameters() if p.requires_grad]
            load_finished(self.base.folder, stage.name, trained, stage.steps)

    # The understanding encoder alone: it names what lies in every patch.

    def train_vit(self) -> None:
        width = self.model.config.understanding.width
        head = nn.Linear(width, len(world.SHAPES) * len(world.COLORS) + 1 + len(world.BACKGROUNDS)).to(self.device)
        both = nn.ModuleList([self.model, head])
        both.requires_grad_(False)
        head.requires_grad_(True)
        for p in self.model.part(UNDERSTANDING):
            p.requires_grad_(True)

        def losses(step: int, draw: Draw) -> dict[str, Tensor]:
            scenes = seen_scenes(draw.numpy, 64)
            x = pixels([world.render(scene) for scene in scenes]).to(self.device)
            with self.autocast():
                logits = head(self.model.see(x)).float()
            labels = torch.from_numpy(np.stack([patch_labels(scene) for scene in scenes])).to(self.device)
            grounds = torch.tensor([list(world.BACKGROUNDS).index(scene.background) for scene in scenes])
            things = logits[..., : -len(world.BACKGROUNDS)]
            ground = logits[..., -len(world.BACKGROUNDS) :].mean(1)
            there = labels < things.shape[-1] - 1
            return {
                "things": F.cross_entropy(things.flatten(0, 1), labels.flatten()),
                "ground": 0.3 * F.cross_entropy(ground, grounds.to(self.device)),
                "_right": (things.argmax(-1) == labels)[there].float().mean(),
            }

        self._run_or_reuse(self.recipe.vit, both, losses)

    # Latents and features of a fixed set of scenes: both encoders are frozen while most of the training runs.

    def prepare_scenes(self) -> None:
        home = self.base or Base(self.folder, self.seed)
        self.scenes = drawn_scenes(np.random.default_rng([home.seed, 77]), self.recipe.scenes)
        path = home.folder / f"scenes-{self.recipe.scenes}.pt"
        if path.exists():
            self.latents, self.features = torch.load(path, weights_only=True, map_location="cpu")
        elif self.base:
            raise TrainingError(f"{path} is missing: expected a run that has prepared {self.recipe.scenes} scenes")
        else:
            latents, features = [], []
            for start in range(0, len(self.scenes), 100):
                x = pixels([world.render(scene) for scene in self.scenes[start : start + 100]]).to(self.device)
                with torch.no_grad(), self.autocast():
                    latents.append(self.vae.encode(x)[0].float().cpu())
                    features.append(self.model.see(x).to(torch.bfloat16).cpu())
            self.latents, self.features = torch.cat(latents), torch.cat(features)
            save_atomically((self.latents, self.features), path)
        self.latents, self.features = self.latents.to(self.device), self.features.to(self.device)

    # Losses

    def draw_losses(self, draw: Draw) -> dict[str, Tensor]:
        """Rectified flow at logit-normal times, and alignment of the middle to the understanding encoder."""
        r, rng = self.recipe, draw.numpy
        chosen = rng.integers(0, len(self.scenes), r.prompts)
        prompts = [self.encoder.prompt(language.caption(rng, self.scenes[i]).text) for i in chosen]
        dropped = torch.from_numpy(rng.random((r.prompts, r.levels)) < r.drop)
        batch = draw_batch(prompts, r.levels, self.model.config.num_image_tokens, dropped, self.device)
        rows = torch.from_numpy(chosen).to(self.device).repeat_interleave(r.levels)
        x = self.latents[rows]
        t = torch.sigmoid(normal(draw, len(rows))).to(self.device)
        noise = normal(draw, *x.shape).to(self.device)
        z = torch.lerp(noise, x, t[:, None, None, None])
        with self.autocast():
            v, middle = self.model.velocity(batch.ids, batch.packed, z, 1000 * t, r.middle)
            losses = {"flow": (v.float() - (x - noise)).square().mean()}
            if r.alignment:
                likeness = F.cosine_similarity(self.model.align(middle).float(), self.features[rows].float(), dim=-1)
                losses["align"] = r.alignment * (1 - likeness.mean())
        return losses

    def picture_tokens(self, pixels: Tensor, frozen: bool) -> Tensor:
        """Tokens (B, N, D) by which the language model sees pictures; `frozen`: no gradient reaches their encoder.

        With one encoder for both faces it is the generation encoder, which is never frozen.
        """
        if self.recipe.shared:
            return self.model.read_latents(self.vae.encode(pixels)[0].float())
        with torch.set_grad_enabled(not frozen):
            features = self.model.see(pixels)
        return self.model.read(features)

    def answer_losses(self, draw: Draw, count: int, weight: float, frozen: bool) -> dict[str, Tensor]:
        scenes = seen_scenes(draw.numpy, count)
        asked = [ask(draw.numpy, scene, self.recipe.questions) for scene in scenes]
        batch = answer_batch(self.encoder, asked, self.device)
        x = pixels([world.render(scene) for scene in scenes]).to(self.device)
        with self.autocast():
            seen = self.picture_tokens(x, frozen)
            logits = self.model.answers(batch.ids, batch.packed, seen, self.encoder.image_start).float()
        loss = F.cross_entropy(logits.flatten(0, 1), batch.targets.flatten(), ignore_index=-100)
        return {"answer": weight * loss, **accuracies(batch, logits)}

    # Stages of the two faces

    def _only(self, *prefixes: str) -> None:
        self.model.requires_grad_(False)
        for p in self.model.part(*prefixes):
            p.requires_grad_(True)

    def train_answers(self) -> None:
        """The language model learns its words, on the frozen encoder: it stands for the pre-trained one."""
        self._only(*LANGUAGE, *(GENERATION_ENCODER if self.recipe.shared else ()))

        def losses(step: int, draw: Draw) -> dict[str, Tensor]:
            return self.answer_losses(draw, 24, 1.0, frozen=True)

        if self.recipe.shared:  # its encoder is not the one that the base has read with
            run_stage(self.recipe.answer, self.model, losses, self.folder, self.seed)
        else:
            self._run_or_reuse(self.recipe.answer, self.model, losses)

    def adapt(self) -> None:
        """Stage 1: the new parts, between frozen ones."""
        self._only(*GENERATION, "vision_und_enc_aligner")
        run_stage(self.recipe.adapt, self.model, lambda step, draw: self.draw_losses(draw), self.folder, self.seed)

    def pretrain(self, watch_every: int = 1000) -> None:
        """Stage 2: everything but the understanding encoder."""
        self._only(*GENERATION, *LANGUAGE)
        self._unify(self.recipe.pretrain, frozen=True, watch_every=watch_every)

    def tune(self, watch_every: int = 1000) -> None:
        """Stage 3: everything that either face uses."""
        self._only(*GENERATION, *LANGUAGE, *(() if self.recipe.shared else (UNDERSTANDING,)))
        self._unify(self.recipe.tune, frozen=False, watch_every=watch_every)

    def _unify(self, stage: Stage, frozen: bool, watch_every: int) -> None:
        r = self.recipe

        def losses(step: int, draw: Draw) -> dict[str, Tensor]:
            drawing = self.draw_losses(draw)
            return drawing | self.answer_losses(draw, r.asked, r.answer_weight, frozen)

        run_stage(
            stage,
            self.model,
            losses,
            self.folder,
            self.seed,
            lambda step: self.score() | self.answer_score(),
            watch_every,
        )

    # Sampling, to watch and for parity with the engine

    @torch.no_grad()
    def sample(self, prompts: list[list[int]], noise: Tensor, steps: int, guidance: float) -> Tensor:
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
    def answer_score(self, questions: int = 40, seed: int = 1) -> dict[str, float]:
        """Share of validation questions answered word for word, by topic and overall.

        A greedy answer is right if, and only if, each of its tokens is the likeliest behind the right ones before it.
        """
        shares = {}
        for number, topic in enumerate(language.TOPICS):
            asked = [validation_question(topic, (seed, number, k)) for k in range(questions)]
            batch = answer_batch(self.encoder, [[question] for _, question in asked], self.device)
            x = pixels([world.render(scene) for scene, _ in asked]).to(self.device)
            with self.autocast():
                seen = self.picture_tokens(x, frozen=True)
                logits = self.model.answers(batch.ids, batch.packed, seen, self.encoder.image_start)
            right = ((logits.argmax(-1) == batch.targets) | (batch.targets == -100)).all(1)
            shares[f"answer_{topic}"] = round(float(right.float().mean()), 3)
        return shares | {"answers": round(float(np.mean(list(shares.values()))), 3)}

    @torch.no_grad()
    def score(self, samples: int = 16, steps: int = 12, guidance: float = 2.0) -> dict[str, float]:
        """Share of validation prompts drawn right, by category and overall."""
        prompts = prompt_set(samples, seed=1, split="validation")
        ids = [self.encoder.prompt(prompt.text) for prompt in prompts]
        shape = self.latents.shape[1:]
        noise = torch.randn(len(ids), *shape, generator=torch.Generator().manual_seed(5))
        with self.autocast():
            z = self.sample(ids, noise, steps, guidance)
            images = to_u8(self.vae.decode(z))
        right: dict[str, list[bool]] = {}
        for prompt, image in zip(prompts, images, strict=True):
            right.setdefault(prompt.category, []).append(give_verdict(prompt, image).correct)
        shares = {name: round(float(np.mean(values)), 3) for name, values in right.items()}
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


def to_u8(images: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Pictures (B, S, S, 3) of pixels (B, 3, S, S) in [-1, 1]."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)


def patch_labels(scene: world.Scene, patch: int = 16) -> np.ndarray[tuple[int, ...], np.dtype[np.int64]]:
    """For every patch in raster order the class (color x shape) that covers a tenth of it, or the last for none."""
    side = world.SIZE // patch
    nothing = len(world.COLORS) * len(world.SHAPES)
    labels = np.full((side, side), nothing)
    for thing in scene.things:
        covered = world.coverage(thing.shape, thing.x, thing.y, thing.radius)
        share = covered.reshape(side, patch, side, patch).mean((1, 3))
        color, shape = list(world.COLORS).index(thing.color), world.SHAPES.index(thing.shape)
        labels[share > 0.1] = color * len(world.SHAPES) + shape
    return labels.flatten()


def accuracies(batch: AnswerBatch, logits: Tensor) -> dict[str, Tensor]:
    """Share of right tokens by topic; NaN-free: a topic that was not asked counts as right."""
    right = logits.argmax(-1) == batch.targets
    found = {}
    for number, topic in enumerate(language.TOPICS):
        of_topic = (batch.topics == number) & (batch.targets != -100)
        found[f"_{topic}"] = right[of_topic].float().mean() if of_topic.any() else torch.ones(())
    return found
