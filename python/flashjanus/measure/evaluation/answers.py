"""Asks a model questions in batches and scores the share that it answers word for word."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from PIL import Image

from flashjanus.api.janusflow import JanusFlow
from flashjanus.engine.ops import linear
from flashjanus.measure.evaluation import world
from flashjanus.measure.evaluation.drawing import Progress, silent
from flashjanus.measure.evaluation.sets import Asked
from flashjanus.measure.evaluation.statistics import Share, shares_by_name

QUESTIONS_AT_ONCE = 16
MAX_NEW_TOKENS = 8


def at_once(model: JanusFlow) -> int:
    """Questions per batch. Where a kernel for few rows rounds differently, a batch has no more rows than it serves.

    Such kernels exist for 4-bit weights, and for int8 without tiles, where inputs are not quantized for few rows.
    """
    apart = model.quantization == "int4" or (model.quantization == "int8" and not model.runner.policy.tiled)
    return linear.MAX_ROWS if apart else QUESTIONS_AT_ONCE


def ask(model: JanusFlow, questions: Sequence[tuple[Image.Image | None, str]]) -> list[str]:
    """Greedy answers of at most MAX_NEW_TOKENS tokens, computed as one batch; a question need not have a picture."""
    conversations = []
    for image, text in questions:
        content: list[dict[str, Any]] = [] if image is None else [{"type": "image", "image": image}]
        conversations.append([{"role": "user", "content": [*content, {"type": "text", "text": text}]}])
    return list(model.chat(conversations, max_new_tokens=MAX_NEW_TOKENS, do_sample=False))


def score_answers(model: JanusFlow, asked: Sequence[Asked], progress: Progress = silent) -> dict[str, Share]:
    """By topic, the share of questions about ground-truth renders answered correctly; case and spaces are ignored."""
    outcomes = []
    with progress(len(asked), "asking") as show:
        for start in range(0, len(asked), at_once(model)):
            batch = asked[start : start + at_once(model)]
            replies = ask(model, [(Image.fromarray(world.render(one.scene)), one.question.text) for one in batch])
            for one, reply in zip(batch, replies, strict=True):
                correct = reply.strip().casefold() == one.question.answer.casefold()
                outcomes.append((one.question.topic, correct))
            show(start + len(batch))
    return shares_by_name(outcomes)
