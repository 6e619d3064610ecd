"""The shipped weights still draw and answer as well as their model card says: a floor, well below its figures."""

from __future__ import annotations

from flashjanus import JanusFlow
from flashjanus.measure.evaluation import evaluate_shapes


def test_the_built_in_model_keeps_its_score() -> None:
    """60 prompts and 70 questions of unseen combinations, the same ones every time."""
    model = JanusFlow.from_pretrained("shapes", device="cpu", dtype="float32")
    report = evaluate_shapes(model, samples=10, questions=10, steps=10)
    assert report.draw is not None
    assert report.answers is not None
    assert sum(share.total for share in report.draw.categories.values()) == 60
    assert report.draw.overall.value >= 0.8
    assert report.answers.overall.value >= 0.9
    assert report.judge.overall.value >= 0.995
    assert report.ceiling is not None
    assert report.ceiling.overall.value >= 0.95
