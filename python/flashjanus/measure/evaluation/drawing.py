"""Draws many prompts in batches and reports progress."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from PIL import Image

from flashjanus.api.janusflow import ROWS_AT_ONCE, JanusFlow
from flashjanus.sampling import presets
from flashjanus.sampling.options import SAMPLING

Progress = Callable[[int, str], AbstractContextManager[Callable[[int], None]]]
"""progress(total, label) -> a context whose value takes the number of steps done so far."""


@contextmanager
def silent(total: int, label: str) -> Iterator[Callable[[int], None]]:
    """A progress callback that shows nothing."""
    yield lambda done: None


def draw(
    model: JanusFlow,
    prompts: Sequence[str],
    *,
    seed: int,
    progress: Progress = silent,
    **sampling: Any,
) -> Iterator[Image.Image]:
    """One picture for each prompt, yielded batch by batch. Prompt k starts from seed + k.

    With best_of = n, prompt k has the n seeds from seed + n k on. sampling: options of `generate_image`.
    """
    batches = range(0, len(prompts), ROWS_AT_ONCE)
    candidates = sampling.get("best_of") or 1
    evaluations = len(presets.sampler(**{name: sampling[name] for name in SAMPLING if name in sampling}).schedule)
    with progress(len(batches) * candidates * evaluations, "drawing") as show:
        done = 0

        def step_done(_model: JanusFlow, _step: int, _time: float, state: dict[str, Any]) -> dict[str, Any]:
            nonlocal done
            done += 1
            show(done)
            return state

        for start in batches:
            yield from model.generate_image(
                list(prompts[start : start + ROWS_AT_ONCE]),
                seed=seed + start * candidates,
                callback_on_step_end=step_done,
                **sampling,
            ).images
