"""The best of several images of a prompt: the weights that drew them also say how well they show it."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, TypeAlias

import torch
from PIL import Image

from flashjanus.builtin import NAMES
from flashjanus.builtin.checks import checks as builtin_checks
from flashjanus.engine.runtime.isolation import callers_state
from flashjanus.errors import InputError

from . import options, text
from .images import to_pil
from .prompts import encode_chat
from .tokenizer import Tokenizer

if TYPE_CHECKING:
    from .janusflow import ImageOutput, JanusFlow

Check: TypeAlias = tuple[str, str, Sequence[str]]
"""A question about an image, the answer that speaks for it, and the answers against it."""
Judge: TypeAlias = str | Callable[[str], Sequence[Check]]
"""What a prompt's images are asked: the wording of a yes/no question, or the checks of a prompt."""
QUESTION = "Does this image show: {prompt}?"
JUDGED_AT_ONCE = 8


@dataclass(frozen=True)
class Candidate:
    """An image (3, H, W), about [-1, 1], the seed that draws it alone, and how well it shows its prompt (0 to 1)."""

    image: torch.Tensor
    seed: int
    score: float


def choose(
    model: JanusFlow,
    tokenizer: Tokenizer,
    draw: Callable[..., ImageOutput],
    prompts: Sequence[str],
    images: int,
    best_of: int | None,
    accept_above: float | None,
    judge: Judge | None,
    seed: int | None,
) -> tuple[list[Candidate], dict[str, float]]:
    """The `images` best candidates of each prompt, the best first, and the seconds spent.

    Candidate i of prompt p is drawn from seed + p best_of + i. `draw` makes latents: `JanusFlow.generate_image` but for
    prompt, number and seed. With accept_above, a prompt's candidates are drawn `images` at a time until so many score
    at least that. Raises InputError.
    """
    begun = time.perf_counter()
    if best_of is None:
        raise InputError("best_of: expected the most candidates to draw, which accept_above needs beside it; got None")
    candidates = options.integer("best_of", best_of, 1, 10_000)
    if candidates < images:
        raise InputError(f"best_of: expected at least num_images_per_prompt = {images} candidates, got {candidates}")
    enough = None if accept_above is None else options.number("accept_above", accept_above, 0.0, 1.0)
    if model.numerics == "official":
        raise InputError(
            "best_of: numerics='official' draws all images of a prompt from one seed, from which a chosen one cannot "
            "be drawn again; expected a model with numerics='exact'"
        )
    asked = [checks_of(prompt, model.name, judge) for prompt in prompts]
    first = options.first_seed(seed, len(prompts) * candidates)
    spent = dict.fromkeys(("prompt", "flow", "decode", "judge"), 0.0)

    def drawn(numbers: Sequence[int], count: int, at: int) -> list[Candidate]:
        """`count` candidates of each of these prompts, the first from seed `at`."""
        out = draw([prompts[n] for n in numbers], num_images_per_prompt=count, seed=at)
        flowed = time.perf_counter()
        pictures = model.decode_latents(out.images)
        model.runner.synchronize()
        decoded = time.perf_counter()
        checks = [asked[n] for n in numbers for _ in range(count)]
        scores = judge_images(model, tokenizer, [to_pil(picture) for picture in pictures], checks)
        for part, seconds in (
            ("prompt", out.timings["prompt"]),
            ("flow", out.timings["flow"]),
            ("decode", decoded - flowed),
            ("judge", time.perf_counter() - decoded),
        ):
            spent[part] += seconds
        return [Candidate(*one) for one in zip(pictures, out.seeds, scores, strict=True)]

    if enough is None:
        together = drawn(range(len(prompts)), candidates, first)
        found = [together[n * candidates : (n + 1) * candidates] for n in range(len(prompts))]
    else:
        found = [[] for _ in prompts]
        for n, own in enumerate(found):
            while len(own) < candidates and sum(one.score >= enough for one in own) < images:
                own += drawn([n], min(images, candidates - len(own)), first + n * candidates + len(own))
    best = [one for own in found for one in sorted(own, key=lambda one: -one.score)[:images]]
    return best, {**spent, "total": time.perf_counter() - begun}


def checks_of(prompt: str, name: str, judge: Judge | None) -> Sequence[Check]:
    """What images of `prompt` are asked; without a judge QUESTION, or what a built-in model was trained to answer."""
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
    model: JanusFlow, tokenizer: Tokenizer, images: Sequence[Image.Image], asked: Sequence[Sequence[Check]]
) -> list[float]:
    """Of each image the product over its checks of P(answer) / (P(answer) + sum of P(others)), by the next token.

    P of a word is the sum over its spellings that are one token. A prefill for each image and check, no decoding.
    """
    limit = model.config.language.max_position_embeddings
    tags = text.ImageTokens(tokenizer.image_start_id, tokenizer.image_id)
    every = [(n, check) for n, checks in enumerate(asked) for check in checks]
    pixels = [model.processor.preprocess(image)[None] for image in images]
    scores = [1.0] * len(images)
    for start in range(0, len(every), JUDGED_AT_ONCE):
        part = every[start : start + JUDGED_AT_ONCE]
        requests = []
        for n, (question, _, _) in part:
            content = [{"type": "image", "image": images[n]}, {"type": "text", "text": question}]
            ids = encode_chat([{"role": "user", "content": content}], tokenizer, limit).ids
            requests.append(text.TextRequest(tuple(ids), pixels[n]))
        logits = text.next_token_logits(model.runner, requests, tags).cpu()
        for (n, (_, answer, others)), row in zip(part, logits, strict=True):
            own = spellings(tokenizer, answer)
            rest = [i for other in others for i in spellings(tokenizer, other)]
            scores[n] *= float(row[[*own, *rest]].softmax(0)[: len(own)].sum())
    return scores


def spellings(tokenizer: Tokenizer, word: str) -> list[int]:
    """Ids of the tokens that are `word`: with a space in front or without, as it is, capitalised or in capitals."""
    forms = [space + form for form in (word, word.capitalize(), word.upper()) for space in ("", " ")]
    found = {ids[0] for ids in map(tokenizer.encode_text, forms) if len(ids) == 1}
    if not found:
        raise InputError(f"judge: expected answers that are one token of this tokenizer, got {word!r}")
    return sorted(found)
