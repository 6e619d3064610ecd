"""Decides which work runs next. All times are seconds measured while serving."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from flashjanus.checkpoint import LanguageConfig
from flashjanus.execution.runner import Runner
from flashjanus.scheduling.requests import ImageJob, Job, TextJob

FREE_SHARE = 0.5
"""The share of the memory that is free when the scheduler is made that rows may take. Weights stay, and plans need
the rest."""
PREFIX_SHARE = 0.1
"""The share of the same memory that prefixes may take."""
WITHOUT_NUMBER = 8 * 2**30
"""The bytes assumed to be free if the system does not report a number."""


@dataclass(frozen=True)
class Limits:
    """The most live rows, bytes of their keys and values, bytes of prefixes, and waiting jobs (None: any number).

    A job that exceeds a limit by itself is served alone.
    """

    images: int = 32
    answers: int = 64
    row_bytes: int | None = None
    prefix_bytes: int | None = None
    queued: int | None = None

    def of(self, runner: Runner) -> tuple[int, int]:
        """The bytes for rows and for prefixes on a model's device."""
        free = available(runner)
        rows = int(FREE_SHARE * free) if self.row_bytes is None else self.row_bytes
        return rows, int(PREFIX_SHARE * free) if self.prefix_bytes is None else self.prefix_bytes


def available(runner: Runner) -> int:
    """The bytes that can still be allocated on a model's device."""
    if runner.gpu is not None:
        return runner.gpu.driver.free_memory()[0]
    meminfo = Path("/proc/meminfo")
    if not meminfo.exists():
        return WITHOUT_NUMBER
    fields = dict(line.split(":", 1) for line in meminfo.read_text().splitlines())
    return int(fields["MemAvailable"].split()[0]) * 1024


def row_bytes(job: Job, language: LanguageConfig, image_tokens: int, itemsize: int) -> int:
    """The bytes of the keys and values of a job's rows."""
    slot = 2 * language.num_hidden_layers * language.num_key_value_heads * language.head_dim * itemsize
    if isinstance(job, TextJob):
        return slot * (len(job.request.ids) + job.room)
    return sum(
        (1 + row.schedule.guided) * slot * (len(row.prompt) + 1 + image_tokens + len(row.schedule)) for row in job.rows
    )


def size(job: Job) -> tuple[int, int]:
    """The numbers of image rows and answer rows of a job."""
    return (len(job.rows), 0) if isinstance(job, ImageJob) else (0, 1)


class Turns:
    """Three kinds of work share the device: tokens, evaluations of images, and pieces of other work (preparing prompts,
    encoding images, reading conversations, decoding pictures). No piece takes much longer than an evaluation.

    Tokens run between any two of the others, so that a streamed answer waits for at most one of them. They get up to
    ANSWERS times the time of the work before them: an answer is read while it is written, and one token per evaluation
    of sixteen images would be slower than anyone reads. Pieces get as much time as evaluations, so that both waiting
    and running jobs make progress. However, no image begins before all images admitted with it are prepared, because
    rows that run together cost less than rows that follow each other.

    counts, seconds: the turns of each kind ("evaluation", "tokens", "piece") so far, and their time.
    """

    ANSWERS = 0.25

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.counts, self.seconds = Counter[str](), dict.fromkeys(("evaluation", "tokens", "piece"), 0.0)
        self._evaluation = self._pieces = self._tokens = self._other = 0.0
        self._due = True

    def piece_next(self, pieces: bool, images: bool, gathering: bool) -> bool:
        """Whether a piece runs before an evaluation. gathering: no image has begun, and some are being prepared."""
        if not (pieces and images):
            return pieces
        return gathering or self._pieces < self._evaluation

    def tokens_next(self) -> bool:
        """Whether another token runs before a piece or an evaluation."""
        return self._due or self._tokens < self.ANSWERS * self._other

    def took(self, kind: str, began: float) -> None:
        """Record that work of `kind` ("piece", "evaluation" or "tokens") has run since `began`."""
        spent = self._clock() - began
        self.counts[kind] += 1
        self.seconds[kind] += spent
        if kind == "tokens":
            self._tokens, self._due = self._tokens + spent, False
            return
        self._tokens, self._other, self._due = 0.0, spent, True
        if kind == "piece":
            self._pieces += spent
        else:
            self._evaluation, self._pieces = spent, 0.0
