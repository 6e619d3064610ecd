"""The stages of training the two faces: what each updates, on what, and how it is watched."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from autoencoder import AutoencoderKL
from checkpoints import TrainingError, load_finished, save_atomically
from data import TAKEN, AnswerBatch, Encoder, answer_batch, ask, draw_batch, drawn_scenes, normal, seen_scenes
from faces import Faces, draw_score
from flashjanus.disk.writing import whole
from flashjanus.measure.evaluation import language, world
from flashjanus.measure.evaluation.shapes import category_sheet
from janusflow import UNDERSTANDING, JanusFlow
from loop import Draw, Losses, run_stage
from pictures import rendered
from plots import plot_run
from ranks import first_alone, share
from recipe import Recipe, Stage
from torch import Tensor, nn

GENERATION = ("vision_gen_", "align")
GENERATION_ENCODER = ("vision_gen_enc_",)
LANGUAGE = ("language_model", "vision_und_enc_aligner", "beg_of_und_embed")


@dataclass(frozen=True)
class Base:
    """A run whose VAE, understanding encoder and scenes another run reads; and the seed that they follow from."""

    folder: Path
    seed: int


class Trainer:
    """vae: trained and whitened. folder: where checkpoints, logs and sheets go. base: where the rest is read from."""

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
        vae.eval().requires_grad_(False)
        self.model, self.vae, self.encoder = model, vae, encoder
        self.folder, self.seed, self.recipe, self.base = folder, seed, recipe, base
        self.faces = Faces(model, vae, encoder, recipe.shared)
        self.device, self.autocast = self.faces.device, self.faces.autocast

    def run(self) -> None:
        """All stages in turn; those that are finished are only read."""
        self.train_vit()
        self.prepare_scenes()
        for stage in (self.train_answers, self.adapt, self.pretrain, self.tune):
            stage()

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
            scenes = seen_scenes(draw.numpy, share(self.recipe.vit_batch))
            x = rendered(scenes).to(self.device)
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
        self.of_kind = [[i for i, scene in enumerate(self.scenes) if scene.kind == kind] for kind in TAKEN]
        path = home.folder / f"scenes-{self.recipe.scenes}.pt"
        with first_alone():
            if path.exists():
                known = torch.load(path, weights_only=True, map_location="cpu")
            elif self.base:
                raise TrainingError(f"{path} is missing: expected a run that has prepared {self.recipe.scenes} scenes")
            else:
                known = self._encoded_scenes()
                save_atomically(known, path)
        self.latents, self.features = (part.to(self.device) for part in known)

    @torch.no_grad()
    def _encoded_scenes(self) -> tuple[Tensor, Tensor]:
        """Latents and features, in fp32 and bf16."""
        latents, features = [], []
        for start in range(0, len(self.scenes), 100):
            x = rendered(self.scenes[start : start + 100]).to(self.device)
            with self.autocast():
                latents.append(self.vae.encode(x)[0].float().cpu())
                features.append(self.model.see(x).to(torch.bfloat16).cpu())
        return torch.cat(latents), torch.cat(features)

    # Losses

    def draw_losses(self, draw: Draw) -> dict[str, Tensor]:
        """Rectified flow at logit-normal times, and alignment of the middle to the understanding encoder."""
        r, rng = self.recipe, draw.numpy
        count = share(r.prompts)
        kinds = rng.choice(len(TAKEN), count, p=list(TAKEN.values()))
        chosen = np.array([self.of_kind[kind][rng.integers(len(self.of_kind[kind]))] for kind in kinds])
        prompts = [self.encoder.prompt(language.caption(rng, self.scenes[i]).text) for i in chosen]
        dropped = torch.from_numpy(rng.random((count, r.levels)) < r.drop)
        batch = draw_batch(prompts, r.levels, self.model.config.num_image_tokens, dropped, self.device)
        rows = torch.from_numpy(chosen).to(self.device).repeat_interleave(r.levels)
        x = self.latents[rows]
        t = torch.sigmoid(r.time_std * normal(draw, len(rows)) + r.time_mean).to(self.device)
        noise = normal(draw, *x.shape).to(self.device)
        z = torch.lerp(noise, x, t[:, None, None, None])
        with self.autocast():
            v, middle = self.model.velocity(batch.ids, batch.packed, z, 1000 * t, r.middle)
            losses = {"flow": (v.float() - (x - noise)).square().mean()}
            if r.alignment:
                likeness = F.cosine_similarity(self.model.align(middle).float(), self.features[rows].float(), dim=-1)
                losses["align"] = r.alignment * (1 - likeness.mean())
        return losses

    def answer_losses(self, draw: Draw, count: int, weight: float, frozen: bool) -> dict[str, Tensor]:
        scenes = seen_scenes(draw.numpy, count)
        asked = [ask(draw.numpy, scene, self.recipe.questions) for scene in scenes]
        batch = answer_batch(self.encoder, asked, self.device)
        x = rendered(scenes).to(self.device)
        with self.autocast():
            seen = self.faces.picture_tokens(x, frozen)
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
            return self.answer_losses(draw, share(self.recipe.answer_batch), 1.0, frozen=True)

        if self.recipe.shared:  # its encoder is not the one that the base has read with
            run_stage(self.recipe.answer, self.model, losses, self.folder, self.seed)
        else:
            self._run_or_reuse(self.recipe.answer, self.model, losses)

    def adapt(self) -> None:
        """Stage 1: the new parts, between frozen ones."""
        self._only(*GENERATION, "vision_und_enc_aligner")
        run_stage(self.recipe.adapt, self.model, lambda step, draw: self.draw_losses(draw), self.folder, self.seed)

    def pretrain(self) -> None:
        """Stage 2: everything but the understanding encoder."""
        self._only(*GENERATION, *LANGUAGE)
        self._unify(self.recipe.pretrain, frozen=True)

    def tune(self) -> None:
        """Stage 3: everything that either face uses."""
        self._only(*GENERATION, *LANGUAGE, *(() if self.recipe.shared else (UNDERSTANDING,)))
        self._unify(self.recipe.tune, frozen=False)

    def _unify(self, stage: Stage, frozen: bool) -> None:
        r = self.recipe

        def losses(step: int, draw: Draw) -> dict[str, Tensor]:
            drawing = self.draw_losses(draw)
            return drawing | self.answer_losses(draw, share(r.asked), r.answer_weight, frozen)

        def watch(step: int) -> dict[str, float]:
            return self.watch(f"{stage.name}-{step:06}")

        run_stage(stage, self.model, losses, self.folder, self.seed, watch, r.watch_every)

    # Watching

    def watch(self, name: str) -> dict[str, float]:
        """Scores on the validation split; leaves the sheet samples-NAME.png and the plots so far in the folder.

        A full disk costs the pictures, not the training.
        """
        samples, questions = self.recipe.watched
        drawn = self.faces.draw(samples, steps=12, guidance=2.0)
        scores = draw_score(drawn)
        overall = scores.pop("overall")
        try:
            with whole(self.folder / f"samples-{name}.png") as file:
                category_sheet(f"{name}  {overall}", drawn, scores).save(file, "PNG")
            plot_run(self.folder, self.recipe)
        except OSError as error:
            print(f"no plots or sheet this time: {error}", flush=True)
        return scores | {"overall": overall} | self.faces.answer_score(questions)

    def score(self, samples: int = 16, steps: int = 12, guidance: float = 2.0) -> dict[str, float]:
        """Share of validation prompts drawn right, by category and overall."""
        return draw_score(self.faces.draw(samples, steps, guidance))

    def answer_score(self, questions: int = 40) -> dict[str, float]:
        """Share of validation questions answered right, by topic and overall."""
        return self.faces.answer_score(questions)

    def sample(self, prompts: list[list[int]], noise: Tensor, steps: int, guidance: float) -> Tensor:
        """Latents (B, c, L, L); see Faces.sample."""
        return self.faces.sample(prompts, noise, steps, guidance)


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
