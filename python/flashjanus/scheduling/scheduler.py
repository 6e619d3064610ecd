"""The scheduler takes jobs and returns events; it serves images and answers of any number of callers together."""

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
    """`submit` jobs, call `step` while it is `busy`, and read the events. It has no threads and takes one caller at a
    time.

    A step is one evaluation of all images, one token of all answers, or a piece of other work: preparing a prompt,
    encoding an image, reading a part of a conversation, or decoding a picture (policy.py decides which). A job's result
    does not depend on the other jobs. prefixes: prepared prompts and conversations, with their hit counts.
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
        """Queue a job. The smaller its priority and the longer it has waited, the earlier it begins.

        deadline: seconds from now, 0 or more, after which the job fails with DeadlineError. Raises InputError, and
        BusyError if too many jobs wait already.
        """
        check(job, self.runner)
        checks.integer("priority", priority, -MOST, MOST)
        if deadline is not None:
            checks.number("deadline", deadline, 0.0, MOST)
        limit = self.limits.queued
        if limit is not None and self.queued >= limit:
            raise BusyError(f"expected at most {limit} waiting jobs, got {self.queued}; try again later")
        handle = Handle(job, priority, None if deadline is None else self._clock() + deadline)
        self.runner.adapters.use(handle)
        self._book.wait(handle)
        return handle

    @entry
    def cancel(self, handle: Handle) -> bool:
        """Cancel a job. Returns False if it has ended already; otherwise the next step returns Cancelled for it."""
        if handle.ended:
            return False
        self._book.end(handle, Cancelled(handle))
        return True

    @entry
    def resume(self, handle: Handle, latents: torch.Tensor | None = None) -> None:
        """Let paused images continue, from other latents (R, c, H, W) if given. Raises InputError."""
        self._images.resume(handle, latents)

    @entry
    def latents(self, handle: Handle) -> torch.Tensor:
        """The latents (R, c, H, W), float32, of paused images. Raises InputError."""
        return self._images.latents(handle)

    @entry
    def velocities(self, handle: Handle) -> tuple[torch.Tensor, torch.Tensor]:
        """The conditional and unconditional velocities (R, c, H, W) of paused images in the last evaluation, before
        guidance; NaN for a row that did not need its own. Raises InputError."""
        return self._images.velocities(handle)

    @entry
    def added(self, handle: Handle) -> tuple[torch.Tensor, torch.Tensor]:
        """What the language model added to its input in the last evaluation of paused images with a step_cache, in
        the conditional and the unconditional branch: (R, N, D), float32; NaN where the model or that branch did not
        run. Raises InputError."""
        return self._images.added(handle)

    @property
    def busy(self) -> bool:
        """True while a job has not ended or an event has not been returned; see `waits` for paused jobs."""
        return bool(self._book.queue or self._book.works or self._book.events)

    @property
    def waits(self) -> bool:
        """True if a step can do nothing until a paused job is resumed or canceled."""
        works = self._book.events or self._book.pieces or self._images.ready or self._answers.ready
        return self._images.paused and not (works or self._admissible())

    @property
    def queued(self) -> int:
        """The number of jobs that have not begun."""
        return len(self._book.queue)

    @property
    def live(self) -> tuple[int, int]:
        """The numbers of admitted image rows and answer rows."""
        sizes = [work.size for work in self._book.works.values()]
        return sum(images for images, _ in sizes), sum(answers for _, answers in sizes)

    @property
    def turns(self) -> dict[str, tuple[int, float]]:
        """The number of turns and their total seconds, by kind of work ("evaluation", "tokens", "piece")."""
        return {kind: (count, self._turns.seconds[kind]) for kind, count in self._turns.counts.items()}

    @entry
    def step(self) -> list[Event]:
        """Run one turn of the work that is due, and return the pending events. A failed job gets a Failed event;
        others continue."""
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
                late = f"not finished by its deadline, which was {now - handle.deadline:.1f} s ago"
                self._book.end(handle, Failed(handle, DeadlineError(late)))

    def _admissible(self) -> Handle | None:
        """The first waiting job that has room. A job that waits for memory lets no other pass, as it might wait
        forever otherwise; a job that waits for rows of its kind lets the other kind pass."""
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
    """True if the next step reports `error`, which a step has raised, to the jobs that it interrupted."""
    return any(isinstance(event, Failed) and event.error.__cause__ is error for event in scheduler._book.events)
