"""Jobs in, events out: images and answers of any number of callers, served together."""

from __future__ import annotations

import time
from collections.abc import Callable
from functools import partial

import torch

from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.engine.runtime.entry import entry
from flashjanus.errors import BusyError, DeadlineError
from flashjanus.execution.prefixes import PrefixStore
from flashjanus.execution.runner import Runner
from flashjanus.sampling import checks
from flashjanus.scheduling.book import Book, Work
from flashjanus.scheduling.checking import check
from flashjanus.scheduling.drawing import Drawing
from flashjanus.scheduling.policy import Limits, Turns, row_bytes, size
from flashjanus.scheduling.requests import Cancelled, Event, Failed, Handle, ImageJob, Job, Started
from flashjanus.scheduling.writing import Writing

MOST = 2**31 - 1


class Scheduler(ProcessBound):
    """`submit` jobs, `step` while it is `busy`, and read the events; no threads, and one caller at a time.

    A step is one evaluation of all images, or one token of all answers, or a piece of other work: a prompt prepared, an
    image encoded, a part of a conversation read, a picture decoded (policy.py says whose turn it is). What a job gives
    does not depend on which others there are. prefixes: what was prepared and read, and how often it was of use.
    """

    @entry
    def __init__(
        self, runner: Runner, limits: Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self.runner, self.limits, self._clock = runner, limits or Limits(), clock
        self._row_bytes, prefix_bytes = self.limits.of(runner)
        self.prefixes = PrefixStore(prefix_bytes)
        self._book, self._turns = Book(), Turns(clock)
        self._images = Drawing(runner, self.prefixes, self._book)
        self._answers = Writing(runner, self.prefixes, self._book)

    @entry
    def submit(self, job: Job, *, priority: int = 0, deadline: float | None = None) -> Handle:
        """Let a job wait for its turn: the smaller its priority, and the longer it has waited, the earlier it begins.

        deadline: seconds from now, 0 or more, after which it fails with DeadlineError. Raises BusyError where too many
        wait already, InputError.
        """
        check(job, self.runner)
        checks.integer("priority", priority, -MOST, MOST)
        if deadline is not None:
            checks.number("deadline", deadline, 0.0, MOST)
        limit = self.limits.queued
        if limit is not None and self.queued >= limit:
            raise BusyError(f"expected at most {limit} jobs to wait, and {self.queued} do; try again later")
        handle = Handle(job, priority, None if deadline is None else self._clock() + deadline)
        self.runner.adapters.use(handle)
        self._book.wait(handle)
        return handle

    @entry
    def cancel(self, handle: Handle) -> bool:
        """Nobody waits for a job any more: False if it has ended already. The next step tells it as Cancelled."""
        if handle.ended:
            return False
        self._book.end(handle, Cancelled(handle))
        return True

    @entry
    def resume(self, handle: Handle, latents: torch.Tensor | None = None) -> None:
        """Let images that paused go on, where given with other latents (R, c, H, W). Raises InputError."""
        self._images.resume(handle, latents)

    @entry
    def latents(self, handle: Handle) -> torch.Tensor:
        """Of images that paused: (R, c, H, W), float32. Raises InputError."""
        return self._images.latents(handle)

    @entry
    def velocities(self, handle: Handle) -> tuple[torch.Tensor, torch.Tensor]:
        """Of images that paused: the last evaluation's conditional and unconditional velocities (R, c, H, W), before
        guidance; NaN for a row that needed none of its own. Raises InputError."""
        return self._images.velocities(handle)

    @entry
    def added(self, handle: Handle) -> tuple[torch.Tensor, torch.Tensor]:
        """Of images with a step_cache that paused: what the language model added to its input (R, N, D), float32, in
        the last evaluation, in the conditional and the unconditional branch; NaN where it did not run, or not in that
        branch. Raises InputError."""
        return self._images.added(handle)

    @property
    def busy(self) -> bool:
        """True while a job has not ended, or an event has not been told; see `waits` for jobs that pause."""
        return bool(self._book.queue or self._book.works or self._book.events)

    @property
    def waits(self) -> bool:
        """True where a step can do nothing before somebody resumes or cancels a job that paused."""
        works = self._book.events or self._book.pieces or self._images.ready or self._answers.ready
        return self._images.paused and not (works or self._admissible())

    @property
    def queued(self) -> int:
        """Jobs that have not begun."""
        return len(self._book.queue)

    @property
    def live(self) -> tuple[int, int]:
        """Rows of images and of answers that have been admitted."""
        sizes = [work.size for work in self._book.works.values()]
        return sum(images for images, _ in sizes), sum(answers for _, answers in sizes)

    @property
    def turns(self) -> dict[str, tuple[int, float]]:
        """By kind of work ("evaluation", "tokens", "piece") how often it had a turn, and its seconds in all."""
        return {kind: (count, self._turns.seconds[kind]) for kind, count in self._turns.counts.items()}

    @entry
    def step(self) -> list[Event]:
        """One turn of whoever is next, and what there is to tell. A job that fails is told of, and others go on."""
        self._expire()
        while (handle := self._admissible()) is not None:
            self._admit(handle)
        began, pieces = self._clock(), bool(self._book.pieces)
        images, answers = self._images.ready, self._answers.ready
        if answers and (self._turns.tokens_next() or not (pieces or images)):
            self._answers.step()
            self._turns.took("tokens", began)
        elif self._turns.piece_next(pieces, images, self._images.gathering):
            self._book.next_piece()
            self._turns.took("piece", began)
        elif images:
            self._images.evaluate()
            self._turns.took("evaluation", began)
        events, self._book.events = self._book.events, []
        return events

    def _expire(self) -> None:
        now = self._clock()
        for handle in [*self._book.queue, *self._book.works]:
            if handle.deadline is not None and now > handle.deadline:
                late = f"expected to end by its deadline, which was {now - handle.deadline:.1f} s ago"
                self._book.end(handle, Failed(handle, DeadlineError(late)))

    def _admissible(self) -> Handle | None:
        """The first that waits and has room. One that waits for memory lets nobody pass, or it might wait for ever; one
        that waits for rows of its kind lets the other kind pass."""
        if self._book.full or not self._book.queue:
            return None
        live, most = self.live, (self.limits.images, self.limits.answers)
        held = sum(work.nbytes for work in self._book.works.values())
        waits: set[type[Job]] = set()
        for handle in self._book.queue:
            wanted, kind = size(handle.job), type(handle.job)
            if any(want and have and have + want > limit for want, have, limit in zip(wanted, live, most, strict=True)):
                waits.add(kind)
            if kind in waits:
                continue
            return None if held and held + self._bytes(handle.job) > self._row_bytes else handle
        return None

    def _bytes(self, job: Job) -> int:
        config = self.runner.config
        return row_bytes(job, config.language, config.num_image_tokens, self.runner.policy.matrix.itemsize)

    def _admit(self, handle: Handle) -> None:
        job, kind = handle.job, self._images if isinstance(handle.job, ImageJob) else self._answers
        self._book.queue.remove(handle)
        work = Work(handle, size(job), self._bytes(job), partial(kind.withdraw, handle))
        self._book.works[handle] = work
        piece = self._images.begin(work, job) if isinstance(job, ImageJob) else self._answers.begin(work, job)
        self._book.pieces.append((work, piece))
        if not handle.started:
            handle.started = True
            self._book.tell(Started(handle))


def is_told(scheduler: Scheduler, error: BaseException) -> bool:
    """True where the next step tells jobs that `error`, which a step has raised, cut them short."""
    return any(isinstance(event, Failed) and event.error.__cause__ is error for event in scheduler._book.events)
