"""Shows the progress of long work on the console."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

from flashjanus.cli.console import Console

if TYPE_CHECKING:
    from flashjanus.measure.evaluation.drawing import Progress


def progress_of(console: Console) -> Progress:
    """A progress function that draws on the console and ends the work soon after Ctrl-C."""

    @contextmanager
    def progress(total: int, label: str) -> Iterator[Callable[[int], None]]:
        with console.progress(total, label) as show:

            def step(done: int) -> None:
                console.check_interrupt()
                show(done)

            yield step

    return progress
