"""Scores a model: how well it draws what a prompt asks for, and how well it answers questions.

`world`, `language` and `judge` need only numpy, so programs that make training data can use them.
"""

from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from flashjanus.measure.evaluation.detectors import Detection, Detector
    from flashjanus.measure.evaluation.sets import ceiling_scenes, prompt_set, question_set
    from flashjanus.measure.evaluation.shapes import evaluate_shapes
    from flashjanus.measure.evaluation.shapes_report import ShapesReport
    from flashjanus.measure.evaluation.verdict import Verdict, give_verdict

_HOME = {
    "Detection": "detectors",
    "Detector": "detectors",
    "ShapesReport": "shapes_report",
    "Verdict": "verdict",
    "ceiling_scenes": "sets",
    "evaluate_shapes": "shapes",
    "give_verdict": "verdict",
    "prompt_set": "sets",
    "question_set": "sets",
}

__all__ = [
    "Detection",
    "Detector",
    "ShapesReport",
    "Verdict",
    "ceiling_scenes",
    "evaluate_shapes",
    "give_verdict",
    "prompt_set",
    "question_set",
]


def __getattr__(name: str) -> Any:
    """Import a part when it is first used, so that `world` does not have to wait for torch."""
    if name in _HOME:
        return getattr(import_module(f"{__name__}.{_HOME[name]}"), name)
    raise AttributeError(f"module '{__name__}' has no attribute '{name}'")
