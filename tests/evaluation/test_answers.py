"""Scoring answers: what counts as right, and how many questions are asked at once."""

from __future__ import annotations

from typing import Any

import pytest
from flashjanus.engine.ops.linear import MAX_ROWS
from flashjanus.evaluation.answers import QUESTIONS_AT_ONCE, score_answers
from flashjanus.evaluation.prompts import question_set


class Parrot:
    """Knows the answers to the first questions, says them loudly, and counts how many it is asked at once."""

    def __init__(self, answers: list[str], quantization: str | None) -> None:
        self.answers, self.quantization = answers, quantization
        self.batches: list[int] = []

    def chat(self, conversations: list[Any], **options: Any) -> list[str]:
        at = sum(self.batches)
        self.batches.append(len(conversations))
        return [f" {answer.upper()}" for answer in self.answers[at : at + len(conversations)]]


@pytest.mark.parametrize(("quantization", "most"), [(None, QUESTIONS_AT_ONCE), ("int8", 16), ("int4", MAX_ROWS)])
def test_4_bit_weights_are_asked_as_many_as_they_serve_for(quantization: str | None, most: int) -> None:
    asked = question_set(3)
    model = Parrot([one.question.answer for one in asked[:-2]] + ["wrong"] * 2, quantization)
    shares = score_answers(model, asked)  # type: ignore[arg-type]
    assert sum(model.batches) == len(asked) == sum(share.total for share in shares.values())
    assert set(model.batches[:-1]) == {most}
    assert sum(share.correct for share in shares.values()) == len(asked) - 2
