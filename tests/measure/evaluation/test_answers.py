"""Scoring answers: what counts as right, and how many questions are asked at once."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from flashjanus import JanusFlow
from flashjanus.engine.device import native
from flashjanus.engine.ops import linear_scaled
from flashjanus.engine.ops.linear import MAX_ROWS
from flashjanus.measure.evaluation.answers import QUESTIONS_AT_ONCE, at_once, score_answers
from flashjanus.measure.evaluation.sets import question_set
from gpu_stand_in import stand_in


class Parrot:
    """Knows the answers to the first questions, says them loudly, and counts how many it is asked at once."""

    def __init__(self, answers: list[str], quantization: str | None, tiled: bool) -> None:
        self.answers, self.quantization = answers, quantization
        self.runner = SimpleNamespace(policy=SimpleNamespace(tiled=tiled))
        self.batches: list[int] = []

    def chat(self, conversations: list[Any], **options: Any) -> list[str]:
        at = sum(self.batches)
        self.batches.append(len(conversations))
        return [f" {answer.upper()}" for answer in self.answers[at : at + len(conversations)]]


@pytest.mark.parametrize(
    ("quantization", "tiled", "most"),
    [
        (None, False, QUESTIONS_AT_ONCE),
        ("int8", True, QUESTIONS_AT_ONCE),
        ("fp8", False, QUESTIONS_AT_ONCE),
        ("int8", False, MAX_ROWS),
        ("int4", True, MAX_ROWS),
    ],
)
def test_a_model_is_asked_as_many_as_one_kernel_serves(quantization: str | None, tiled: bool, most: int) -> None:
    asked = question_set(3)
    model = Parrot([one.question.answer for one in asked[:-2]] + ["wrong"] * 2, quantization, tiled)
    shares = score_answers(model, asked)  # type: ignore[arg-type]
    assert sum(model.batches) == len(asked) == sum(share.total for share in shares.values())
    assert set(model.batches[:-1]) == {most}
    assert sum(share.correct for share in shares.values()) == len(asked) - 2


@pytest.mark.parametrize(
    ("reply", "right"),
    [
        ("{answer}", True),
        (" {answer}\n", True),
        ("{answer}.", False),
        ("{answer} and more", False),
        ("{answer}{answer}", False),
        ("not {answer}", False),
        ("", False),
    ],
)
def test_an_answer_is_right_as_a_whole(reply: str, right: bool) -> None:
    asked = question_set(1)
    model = Parrot([reply.format(answer=one.question.answer) for one in asked], None, False)
    shares = score_answers(model, asked)  # type: ignore[arg-type]
    assert sum(share.correct for share in shares.values()) == (len(asked) if right else 0)


def rounds(model: JanusFlow, rows: int) -> dict[str, int]:
    """How many linears of the language model decode `rows` conversations by what rounds inputs or weights otherwise."""
    nodes = [n for n in model.plan("decode_step", rows=rows, prompt_tokens=1).nodes if n.op == "linear"]
    found = {"inputs in 8 bits": sum(n.inputs[4] is not None for n in nodes)}
    return {**found, "4 bits": sum(n.attrs["format"] == "int4" for n in nodes)}


@pytest.mark.parametrize(
    ("quantization", "amx", "most"),
    [
        (None, True, QUESTIONS_AT_ONCE),
        ("int8", True, QUESTIONS_AT_ONCE),
        ("int4", True, MAX_ROWS),
        ("int8", False, MAX_ROWS),
        ("int4", False, MAX_ROWS),
    ],
)
def test_questions_asked_at_once_are_decoded_as_one_alone(
    monkeypatch: pytest.MonkeyPatch, quantization: str | None, amx: bool, most: int
) -> None:
    if amx and quantization is not None and native.amx_available() is not None:
        pytest.skip(str(native.amx_available()))
    monkeypatch.setattr(linear_scaled, "_sums_exactly", lambda: True)
    if not amx:
        monkeypatch.setattr(native, "refuses_amx", lambda device, *dtypes: "this CPU has no AMX")
    model = JanusFlow.from_pretrained("shapes", dtype="bfloat16", quantization=quantization)
    assert at_once(model) == most
    assert rounds(model, most) == rounds(model, 1)
    assert (rounds(model, most + 1) == rounds(model, 1)) == (most == QUESTIONS_AT_ONCE)


def test_fp8_decodes_one_as_it_does_many(monkeypatch: pytest.MonkeyPatch) -> None:
    stand_in(monkeypatch)
    model = JanusFlow.from_pretrained("shapes", dtype="bfloat16", quantization="fp8", device="cuda")
    assert at_once(model) == QUESTIONS_AT_ONCE
    assert rounds(model, QUESTIONS_AT_ONCE) == rounds(model, 1) != {"inputs in 8 bits": 0, "4 bits": 0}
