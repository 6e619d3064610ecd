"""How far a drawing of many prompts is: in evaluations, of which a preset says how many there are."""

from __future__ import annotations

from contextlib import contextmanager
from types import SimpleNamespace

import pytest
from flashjanus.api.janusflow import ROWS_AT_ONCE
from flashjanus.measure.evaluation.drawing import draw


@pytest.mark.parametrize(
    ("options", "evaluations"),
    [({}, 30), ({"num_inference_steps": 7}, 7), ({"preset": "fast"}, 16), ({"preset": "fast", "best_of": 2}, 32)],
)
def test_the_total_is_that_of_the_options(options: dict[str, object], evaluations: int) -> None:
    told = []

    @contextmanager
    def progress(total: int, label: str):
        told.append(total)
        yield lambda done: None

    model = SimpleNamespace(generate_image=lambda prompts, **options: SimpleNamespace(images=prompts))
    prompts = [str(n) for n in range(ROWS_AT_ONCE + 1)]
    assert list(draw(model, prompts, seed=0, progress=progress, **options)) == prompts
    assert told == [2 * evaluations]
