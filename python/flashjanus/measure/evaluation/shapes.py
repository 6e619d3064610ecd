"""Scores a model on the shapes world: its pictures, its answers, and how far the judge and the VAE can be trusted."""

from __future__ import annotations

import os
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from safetensors import SafetensorError, safe_open

from flashjanus.api.janusflow import JanusFlow
from flashjanus.api.png import save_png
from flashjanus.builtin import NAMES, builtin_folder
from flashjanus.errors import CheckpointError, InputError
from flashjanus.inputs.images import to_pil
from flashjanus.measure.evaluation import frechet, judge, world
from flashjanus.measure.evaluation.answers import score_answers
from flashjanus.measure.evaluation.drawing import Progress, draw, silent
from flashjanus.measure.evaluation.sets import (
    CATEGORIES,
    Prompt,
    ceiling_scenes,
    floor_scenes,
    judge_scenes,
    prompt_set,
    question_set,
)
from flashjanus.measure.evaluation.shapes_report import DrawReport, GroupedShares, ShapesReport
from flashjanus.measure.evaluation.sheet import Picture, draw_sheet
from flashjanus.measure.evaluation.statistics import shares_by_name
from flashjanus.measure.evaluation.verdict import Verdict, give_verdict
from flashjanus.sampling import checks

MAX_COUNT = 10_000
JUDGE_SCENES = 700
SHEET_COLUMNS = 6
LATENTS_FILE = "evaluation.safetensors"


@dataclass(frozen=True)
class Drawn:
    """A prompt, the picture drawn for it, and its verdict."""

    prompt: Prompt
    image: Image.Image
    verdict: Verdict


def evaluate_shapes(
    model: JanusFlow | str | os.PathLike[str] = "shapes",
    *,
    samples: int = 200,
    questions: int = 100,
    steps: int = 30,
    guidance: float = 2.0,
    seed: int = 0,
    only: Literal["draw", "answer"] | None = None,
    sheet: str | os.PathLike[str] | None = None,
    progress: Progress = silent,
    **loading: Any,
) -> ShapesReport:
    """Score `samples` prompts per category and `questions` questions per topic, all of unseen combinations.

    Prompt k is drawn from seed + k, so runs that differ in another option share their noise. only: measure just "draw"
    or "answer". sheet: PNG file for some of the pictures. loading: options of `JanusFlow.from_pretrained`, if `model`
    is not loaded yet. Raises InputError, also for a model that draws pictures of another size.
    """
    samples = checks.integer("samples", samples, 1, MAX_COUNT)
    questions = checks.integer("questions", questions, 1, MAX_COUNT)
    steps = checks.integer("steps", steps, 1, checks.MAX_STEPS)
    guidance = checks.number("guidance", guidance, 0.0, checks.MAX_GUIDANCE)
    seed = checks.integer("seed", seed, 0, 2**31)
    checks.choice("only", only, (None, "draw", "answer"))  # type: ignore[arg-type]
    if sheet is not None and only == "answer":
        raise InputError("sheet: a sheet shows drawn pictures, and only='answer' draws none; leave one of them out")
    loaded = JanusFlow.from_pretrained(model, **loading) if isinstance(model, str | os.PathLike) else model
    seconds: dict[str, float] = {}
    drawing = answers = ceiling = absent = None
    with _timed(seconds, "judge"):
        judged = _judge_accuracy(seed)
    if only != "answer":
        with _timed(seconds, "draw"):
            sampling = {"num_inference_steps": steps, "guidance_scale": guidance}
            drawn = draw_prompts(loaded, prompt_set(samples, seed), progress, **sampling)
        with _timed(seconds, "frechet"):
            distance = _frechet(loaded, drawn, seed)
        drawing = DrawReport(
            shares_by_name((d.prompt.category, d.verdict.correct) for d in drawn), _faults(drawn), distance
        )
        with _timed(seconds, "vae_ceiling"):
            latents, absent = _ceiling_latents(loaded.name)
            ceiling = None if latents is None else _ceiling(loaded, latents)
        if sheet is not None:
            save_png(shapes_sheet(drawn, drawing), sheet)
    if only != "draw":
        with _timed(seconds, "answers"):
            answers = GroupedShares(score_answers(loaded, question_set(questions, seed), progress))
    chosen = {"samples": samples, "questions": questions, "steps": steps, "guidance": guidance, "seed": seed}
    facts = {
        "model": loaded.name,
        "device": str(loaded.device),
        "dtype": str(loaded.dtype).removeprefix("torch."),
        "numerics": loaded.numerics,
    }
    return ShapesReport(facts, chosen, judged, drawing, ceiling, absent, answers, seconds)


def draw_prompts(
    model: JanusFlow, prompts: Sequence[Prompt], progress: Progress = silent, **sampling: Any
) -> list[Drawn]:
    """Each prompt's picture, drawn from its own seed, with its verdict. The prompts' seeds must be consecutive.

    sampling: options of `JanusFlow.generate_image`.
    """
    texts = [prompt.text for prompt in prompts]
    images = draw(model, texts, seed=prompts[0].seed, progress=progress, **sampling)
    return [
        Drawn(prompt, image, give_verdict(prompt, _pixels(image)))
        for prompt, image in zip(prompts, images, strict=True)
    ]


def shapes_sheet(drawn: Sequence[Drawn], report: DrawReport, columns: int = SHEET_COLUMNS) -> Image.Image:
    """The first pictures of every category, with prompts, verdicts and scores."""
    return category_sheet(f"shapes  {report.overall}", drawn, report.categories, columns)


def category_sheet(
    title: str, drawn: Sequence[Drawn], scores: Mapping[str, object], columns: int = SHEET_COLUMNS
) -> Image.Image:
    """The first pictures of every category in `scores`, under its name and score."""
    sections = []
    for category, score in scores.items():
        first = [one for one in drawn if one.prompt.category == category][:columns]
        pictures = [Picture(one.image, one.prompt.text, one.verdict.correct, str(one.verdict)) for one in first]
        sections.append((f"{category}  {score}", pictures))
    return draw_sheet(title, sections)


def _pixels(image: Image.Image) -> judge.Image:
    if image.size != (world.SIZE, world.SIZE):
        raise InputError(
            f"model: expected one that draws {world.SIZE} x {world.SIZE} pixels, the shapes world's size, got "
            f"{image.width} x {image.height}"
        )
    return np.asarray(image.convert("RGB"))


def _faults(drawn: Sequence[Drawn]) -> dict[str, dict[str, int]]:
    faults = {category: Counter[str]() for category in CATEGORIES}
    for one in drawn:
        faults[one.prompt.category].update({fault.kind for fault in one.verdict.faults})
    return {category: dict(counts) for category, counts in faults.items()}


def _judge_accuracy(seed: int) -> GroupedShares:
    scenes = judge_scenes(JUDGE_SCENES, seed)
    return GroupedShares(
        shares_by_name((scene.kind, judge.matches(scene, judge.look(world.render(scene)))) for scene in scenes)
    )


def _frechet(model: JanusFlow, drawn: Sequence[Drawn], seed: int) -> frechet.FrechetReport:
    pictures = [one.image for one in drawn]
    truth = [Image.fromarray(world.render(one.prompt.scene)) for one in drawn]
    other = [Image.fromarray(world.render(scene)) for scene in floor_scenes(len(drawn), seed)]
    return frechet.compare(*(frechet.features(model, images) for images in (pictures, truth, other)))


def _ceiling_latents(name: str) -> tuple[torch.Tensor | None, str | None]:
    """The latents stored beside the model's weights, or why there are none. CheckpointError if the file is damaged."""
    folder = builtin_folder(name) if name in NAMES else Path(name)
    path = folder / LATENTS_FILE
    if not path.is_file():
        return None, f"there is no {path}, which holds the latents of ground-truth scenes"
    try:
        with safe_open(path, "pt") as file:
            latents: torch.Tensor = file.get_tensor("latents")
    except (SafetensorError, OSError) as error:
        raise CheckpointError(f"{path}: expected a tensor 'latents' (n, c, L, L), {error}") from error
    if latents.ndim != 4 or not len(latents) or not latents.is_floating_point():
        raise CheckpointError(
            f"{path}: 'latents': expected floats (n, c, L, L), got {latents.dtype} {tuple(latents.shape)}"
        )
    return latents, None


def _ceiling(model: JanusFlow, latents: torch.Tensor) -> GroupedShares:
    outcomes = []
    for scene, image in zip(ceiling_scenes(len(latents)), model.decode_latents(latents), strict=True):
        outcomes.append((scene.kind, judge.matches(scene, judge.look(_pixels(to_pil(image))))))
    return GroupedShares(shares_by_name(outcomes))


@contextmanager
def _timed(seconds: dict[str, float], part: str) -> Iterator[None]:
    begun = time.perf_counter()
    yield
    seconds[part] = time.perf_counter() - begun
