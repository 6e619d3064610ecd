"""Measures every mode in one run: distance to the converged solution, similarity to the exact mode, score and time."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import torch

from flashjanus.api.janusflow import JanusFlow
from flashjanus.measure.evaluation.answers import score_answers
from flashjanus.measure.evaluation.drawing import Progress, silent
from flashjanus.measure.evaluation.sets import prompt_set, question_set
from flashjanus.measure.evaluation.shapes import draw_prompts
from flashjanus.measure.evaluation.statistics import Share, shares_by_name
from flashjanus.measure.timing import Record, measure
from flashjanus.sampling import checks

from .distance import cosine, distances, psnr
from .modes import EXACT, Mode
from .subject import IMAGE, Subject, Work

Load = Callable[..., JanusFlow]
"""Returns the model loaded with these options in place of the exact mode's; equal options give the same model."""
REPEATS = 3
LEAST_CONVERGED = 60
"""Least number of steps. With no more than the exact mode takes, there would be no distance to measure."""


@dataclass(frozen=True)
class Effort:
    """How much is measured; 0 skips a part.

    converged_steps: steps of the converged solution. samples: prompts per category of the shapes world. questions:
    questions per topic. rounds, minutes: limits of the timing.
    """

    converged_steps: int = 500
    samples: int = 0
    questions: int = 0
    rounds: int = 5
    minutes: float = 15.0


@dataclass(frozen=True)
class Likeness:
    """Similarity to the exact mode per prompt: PSNR (dB) of latents and images (None without VAE), latents' cosine."""

    latents: list[float]
    cosine: list[float]
    images: list[float] | None


@dataclass(frozen=True)
class Result:
    """The measurements of a mode; None for what was skipped. distances: to the converged solution, per prompt.

    pictures: share of right pictures by category; answers: share of right answers by topic.
    """

    mode: Mode
    record: Record
    distances: list[float] | None
    likeness: Likeness | None
    pictures: Mapping[str, Share] | None = None
    answers: Mapping[str, Share] | None = None


def measure_quality(
    load: Load,
    modes: Sequence[Mode],
    work: Work,
    effort: Effort,
    *,
    done: Callable[[str], None] = lambda what: None,
    progress: Progress = silent,
) -> list[Result]:
    """One result per mode, starting with EXACT. Raises InputError before the long work where possible."""
    steps = effort.converged_steps and checks.integer(
        "converged_steps", effort.converged_steps, LEAST_CONVERGED, checks.MAX_STEPS
    )
    checks.integer("seed", work.seed, 0, 2**31)
    subjects = []
    for mode in modes:
        subjects.append(Subject(mode, load(**mode.loading), work))
        done(f"{mode.name}: loaded")
    records = measure(subjects, [IMAGE], rounds=effort.rounds, repeats=REPEATS, minutes=effort.minutes, done=done)

    solution = None
    if steps:
        done(f"solving in {steps} steps")
        precise = load(dtype="float32", quantization=None, numerics="exact")
        solution = Subject(Mode("converged", sampling={"num_inference_steps": steps}), precise, work).latents()
    exact_z = exact_images = None
    results = []
    for subject, record in zip(subjects, records, strict=True):
        z = subject.latents()
        images = None if subject.model.runner.vae_config is None else subject.model.decode_latents(z)
        if subject.mode.name == EXACT:
            exact_z, exact_images, likeness = z, images, None
        else:
            assert exact_z is not None
            likeness = _likeness(z, images, exact_z, exact_images)
        away = None if solution is None else distances(z, solution)
        done(f"{subject.name}: latents")
        results.append(Result(subject.mode, record, away, likeness))
    answered: dict[int, Mapping[str, Share]] = {}
    return [_scored(*of, effort, answered, progress) for of in zip(results, subjects, strict=True)]


def _likeness(
    z: torch.Tensor, images: torch.Tensor | None, exact_z: torch.Tensor, exact_images: torch.Tensor | None
) -> Likeness:
    both = None if images is None or exact_images is None else psnr(images.clamp(-1, 1), exact_images.clamp(-1, 1), 2.0)
    return Likeness(psnr(z, exact_z), cosine(z, exact_z), both)


def _scored(
    result: Result, subject: Subject, effort: Effort, answered: dict[int, Mapping[str, Share]], progress: Progress
) -> Result:
    """The result with shares of right pictures and answers. `answered` caches the answers of models asked before."""
    pictures = answers = None
    seed = subject.work.seed
    if effort.samples:
        drawn = draw_prompts(subject.model, prompt_set(effort.samples, seed), progress, **subject.drawing)
        pictures = shares_by_name((one.prompt.category, one.verdict.correct) for one in drawn)
    if effort.questions:
        answers = answered.get(id(subject.model))
        if answers is None:
            answers = score_answers(subject.model, question_set(effort.questions, seed), progress)
            answered[id(subject.model)] = answers
    return replace(result, pictures=pictures, answers=answers)
