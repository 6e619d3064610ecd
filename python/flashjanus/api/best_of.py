"""Choose the best of several images of a prompt. The model that drew them also scores how well they show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import torch
from PIL import Image

from flashjanus.api.outputs import ImageOutput, of_type
from flashjanus.api.shelf import Shelf
from flashjanus.api.tensor_model import TensorModel
from flashjanus.builtin import NAMES
from flashjanus.builtin.checks import checks as builtin_checks
from flashjanus.engine.runtime.isolation import callers_state
from flashjanus.errors import InputError
from flashjanus.execution import text
from flashjanus.inputs.images import to_pil
from flashjanus.inputs.prompts import encode_chat
from flashjanus.inputs.tokenizer import Tokenizer
from flashjanus.sampling.options import Check, ImageOptions, Judge
from flashjanus.scheduling import calls
from flashjanus.scheduling.requests import TextJob

Draw: TypeAlias = Callable[[Sequence[str], int, Sequence[int]], Iterator[ImageOutput]]
"""draw(prompts, images per prompt, seeds) yields latents in batches."""
QUESTION = "Does this image show: {prompt}?"
JUDGED_AT_ONCE = 8


@dataclass(frozen=True)
class Candidate:
    """The place of an image on the shelf, the seed that draws it alone, and how well it shows its prompt (0 to 1)."""

    place: int
    seed: int
    score: float


@dataclass(frozen=True)
class Choice:
    """Chooses the `images` best of each prompt's candidates. checks: the checks of each prompt.

    If `enough` is set, a prompt's candidates are drawn `images` at a time until `images` of them score at least that.
    """

    model: TensorModel
    tokenizer: Tokenizer
    prompts: Sequence[str]
    checks: Sequence[Sequence[Check]]
    images: int
    candidates: int
    enough: float | None

    @classmethod
    def of(
        cls,
        model: TensorModel,
        tokenizer: Tokenizer,
        prompts: Sequence[str],
        request: ImageOptions,
    ) -> Choice:
        """The choice that a request with checked options asks for. Raises InputError."""
        images, candidates = request.num_images_per_prompt, request.best_of
        if candidates is None:
            raise InputError(
                "best_of: expected the maximum number of candidates, which accept_above requires, got None"
            )
        if candidates < images:
            raise InputError(
                f"best_of: expected at least num_images_per_prompt = {images} candidates, got {candidates}"
            )
        if model.numerics == "official":
            raise InputError(
                "best_of: expected a model with numerics='exact', got 'official', which draws all images of a prompt "
                "from one seed and cannot draw the chosen one again"
            )
        asked = [checks_of(prompt, model.name, request.judge) for prompt in prompts]
        for question, answer, others in dict.fromkeys(
            (question, answer, tuple(others)) for own in asked for question, answer, others in own
        ):  # a check that cannot be asked is reported before anything is drawn
            question_ids(tokenizer, question, model.config.language.max_position_embeddings)
            for word in (answer, *others):
                spellings(tokenizer, word)
        return cls(model, tokenizer, prompts, asked, images, candidates, request.accept_above)

    def best(self, draw: Draw, seeds: Sequence[int], output_type: str) -> Iterator[ImageOutput]:
        """Yield the images of each prompt, the best first, in outputs of at most JUDGED_AT_ONCE, with timings.

        Candidate i of prompt p is drawn from seeds[p * candidates + i]. Only candidates that may be returned are kept.
        """
        spent: dict[str, float] = {}
        own: list[Candidate] = []
        with Shelf() as shelf:
            if self.enough is None:
                judged = self._judged(draw, range(len(self.prompts)), seeds, shelf, output_type, spent)
                for n, one in enumerate(judged, 1):
                    own = self._kept(own, one, shelf)
                    if n % self.candidates == 0:
                        yield from _outputs(own, shelf, spent, output_type)
                        own = []
                return
            for p in range(len(self.prompts)):
                own, drawn = [], 0
                while drawn < self.candidates and sum(one.score >= self.enough for one in own) < self.images:
                    count = min(self.images, self.candidates - drawn)
                    first = p * self.candidates + drawn
                    for one in self._judged(draw, [p], seeds[first : first + count], shelf, output_type, spent):
                        own = self._kept(own, one, shelf)
                    drawn += count
                yield from _outputs(own, shelf, spent, output_type)

    def _kept(self, best: Sequence[Candidate], one: Candidate, shelf: Shelf) -> list[Candidate]:
        ranked = sorted([*best, one], key=lambda one: -one.score)
        for beaten in ranked[self.images :]:
            shelf.drop(beaten.place)
        return ranked[: self.images]

    def _judged(
        self,
        draw: Draw,
        prompts: Sequence[int],
        seeds: Sequence[int],
        shelf: Shelf,
        output_type: str,
        spent: dict[str, float],
    ) -> Iterator[Candidate]:
        """Draw and judge the candidates of these prompts in batches, and add the seconds to `spent`."""
        each = len(seeds) // len(prompts)
        asked = [self.checks[p] for p in prompts for _ in range(each)]
        done = 0
        for out in draw([self.prompts[p] for p in prompts], each, seeds):
            flowed = time.perf_counter()
            pictures = self.model.decode_latents(out.images)
            self.model.runner.synchronize()
            decoded = time.perf_counter()
            shown = [to_pil(picture) for picture in pictures]
            scores = judge_images(self.model, self.tokenizer, shown, asked[done : done + len(shown)])
            done += len(shown)
            for part, seconds in (
                ("prompt", out.timings["prompt"]),
                ("flow", out.timings["flow"]),
                ("decode", decoded - flowed),
                ("judge", time.perf_counter() - decoded),
            ):
                spent[part] = spent.get(part, 0.0) + seconds
            kept = [torch.from_numpy(np.array(one)) for one in shown] if output_type == "pil" else list(pictures)
            assert out.seeds is not None
            for image, seed, score in zip(kept, out.seeds, scores, strict=True):
                yield Candidate(shelf.put(image), seed, score)


def _outputs(
    chosen: Sequence[Candidate], shelf: Shelf, spent: dict[str, float], output_type: str
) -> Iterator[ImageOutput]:
    """Yield one prompt's outputs. The first one takes all timings out of `spent`, so the next prompt starts at zero."""
    for start in range(0, len(chosen), JUDGED_AT_ONCE):
        part = chosen[start : start + JUDGED_AT_ONCE]
        images = [shelf.take(one.place) for one in part]
        if output_type == "pil":
            pictures: Any = [Image.fromarray(image.numpy()) for image in images]
        else:
            pictures = of_type(torch.stack(images), output_type)
        timings = {name: spent.pop(name, 0.0) for name in ("prompt", "flow", "decode", "judge")}
        timings["total"] = sum(timings.values())
        yield ImageOutput(pictures, [one.seed for one in part], timings, [one.score for one in part])


def checks_of(prompt: str, name: str, judge: Judge | None) -> Sequence[Check]:
    """The checks of a prompt. The default judge is QUESTION, or for a built-in model the checks it was trained on."""
    if judge is None:
        judge = builtin_checks if name in NAMES else QUESTION
    if isinstance(judge, str):
        if "{prompt}" not in judge:
            raise InputError(f"judge: expected a question with {{prompt}} in it, such as {QUESTION!r}, got {judge!r}")
        return [(judge.replace("{prompt}", prompt), "yes", ("no",))]
    if not callable(judge):
        raise InputError(f"judge: expected a question or a function from a prompt to checks, got {judge!r:.80}")
    with callers_state():
        asked = judge(prompt)
    for check in asked if isinstance(asked, Sequence) and asked else [asked]:
        if not (isinstance(check, tuple) and len(check) == 3 and check[2] and not isinstance(check[2], str)):
            raise InputError(
                f"judge: expected checks (question, answer, [another answer, ...]) of {prompt!r:.40}, got {check!r:.80}"
            )
    return asked


def judge_images(
    model: TensorModel, tokenizer: Tokenizer, images: Sequence[Image.Image], asked: Sequence[Sequence[Check]]
) -> list[float]:
    """Score each image: the product over its checks of P(answer) / (P(answer) + sum of P(others)).

    P is the probability of the next token. P of a word is the sum over its one-token spellings. Each image and check
    costs one prefill and no decoding.
    """
    jobs = questions(model, tokenizer, images, asked)
    logits: list[torch.Tensor] = []
    for start in range(0, len(jobs), JUDGED_AT_ONCE):
        logits += calls.results(model.shared, jobs[start : start + JUDGED_AT_ONCE])
    return scores(tokenizer, asked, logits)


def questions(
    model: TensorModel, tokenizer: Tokenizer, images: Sequence[Image.Image], asked: Sequence[Sequence[Check]]
) -> list[TextJob]:
    """One job for each check of each image. Its result is the logits of the answer."""
    limit = model.config.language.max_position_embeddings
    tags = text.ImageTokens(tokenizer.image_start_id, tokenizer.image_id)
    jobs = []
    for image, own in zip(images, asked, strict=True):
        pixels = model.processor.preprocess(image)[None]
        for question, _, _ in own:
            request = text.TextRequest(tuple(question_ids(tokenizer, question, limit)), pixels)
            jobs.append(TextJob(request=request, room=0, image_tokens=tags))
    return jobs


def scores(tokenizer: Tokenizer, asked: Sequence[Sequence[Check]], logits: Sequence[torch.Tensor]) -> list[float]:
    """The score of each image from the logits of its `questions`."""
    found, rows = [], iter(logits)
    for own in asked:
        score = 1.0
        for (_, answer, others), row in zip(own, rows, strict=False):  # strict=True would consume one row too many
            right = spellings(tokenizer, answer)
            rest = [i for other in others for i in spellings(tokenizer, other)]
            score *= float(row.cpu()[[*right, *rest]].softmax(0)[: len(right)].sum())
        found.append(score)
    return found


def question_ids(tokenizer: Tokenizer, question: str, limit: int) -> list[int]:
    """Ids of a question about an image. Raises InputError, also for more than `limit`."""
    content = [{"type": "image", "image": "the candidate"}, {"type": "text", "text": question}]
    return encode_chat([{"role": "user", "content": content}], tokenizer, limit).ids


def spellings(tokenizer: Tokenizer, word: str) -> list[int]:
    """Ids of the tokens that spell `word`: with or without a leading space, as given, capitalized, or in capitals."""
    forms = [space + form for form in (word, word.capitalize(), word.upper()) for space in ("", " ")]
    found = {ids[0] for ids in map(tokenizer.encode_text, forms) if len(ids) == 1}
    if not found:
        raise InputError(f"judge: expected answers that are one token of this tokenizer, got {word!r}")
    return sorted(found)
