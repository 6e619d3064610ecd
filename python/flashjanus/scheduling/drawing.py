"""Image jobs: prompts prepared, all images evaluated together, pictures decoded."""

from __future__ import annotations

import time
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

import torch

from flashjanus.errors import InputError, NonFiniteError, OutOfMemoryError
from flashjanus.execution.flow_rows import FlowRow, FlowRows
from flashjanus.execution.pictures import decode
from flashjanus.execution.prefixes import PrefixStore, prepared
from flashjanus.execution.runner import Runner
from flashjanus.scheduling.book import Book, Piece, Work, cut_short
from flashjanus.scheduling.requests import Failed, Finished, Handle, ImageJob, Preview, Progress


@dataclass(eq=False)
class Drawn:
    """An image job's rows, the latents of those that are finished, and, for a preview, of all before an evaluation."""

    work: Work
    job: ImageJob
    rows: list[FlowRow] = field(default_factory=list)
    latents: dict[FlowRow, torch.Tensor] = field(default_factory=dict)
    before: list[torch.Tensor] = field(default_factory=list)
    paused: bool = False

    @property
    def progress(self) -> tuple[int, int]:
        """Evaluations so far, and all of them."""
        return max(row.taken for row in self.rows), max(len(row.schedule) for row in self.job.rows)

    @property
    def preview_due(self) -> bool:
        """True where the next evaluation is followed by a preview; the last is followed by the picture."""
        if not (self.rows and self.job.preview_every):
            return False
        step, steps = self.progress
        return (step + 1) % self.job.preview_every == 0 and step + 1 < steps

    @property
    def finished(self) -> bool:
        return all(row.finished for row in self.rows)


class Drawing:
    """The image jobs of a scheduler."""

    def __init__(self, runner: Runner, prefixes: PrefixStore, book: Book) -> None:
        self._runner, self._prefixes, self._book = runner, prefixes, book
        self._rows = FlowRows(runner)
        self._jobs: dict[Handle, Drawn] = {}
        self._owners: dict[FlowRow, Drawn] = {}

    @property
    def halted(self) -> bool:
        """True while a job pauses."""
        return any(drawn.paused for drawn in self._jobs.values())

    @property
    def ready(self) -> bool:
        """True where an evaluation has something to do."""
        return bool(self._rows.rows) and not self.halted

    @property
    def begun(self) -> bool:
        """True where an image has been evaluated."""
        return any(row.taken for row in self._rows.rows)

    def begin(self, work: Work, job: ImageJob) -> Piece:
        """Prepare a job's prompts, then let its rows join."""
        drawn = self._jobs[work.handle] = Drawn(work, job)
        made = []
        for n, request in enumerate(job.rows):
            if n and request.timed_prompt != job.rows[n - 1].timed_prompt:
                yield
            made.append(FlowRow(request, prepared(self._runner, self._prefixes, request)))
        drawn.rows = made
        for row in made:
            self._owners[row] = drawn
            self._rows.add(row)

    def withdraw(self, handle: Handle) -> None:
        drawn = self._jobs.pop(handle, None)
        if drawn is not None:
            self._let_go(drawn.rows)

    def evaluate(self) -> None:
        """One evaluation of all images; pictures of those that are finished are decoded in pieces."""
        for drawn in self._jobs.values():
            if drawn.preview_due:
                drawn.before = self._all_latents(drawn)
        try:
            self._rows.step()
        except OutOfMemoryError as error:  # and no other image is there
            self._book.out_of_memory(self._owners[self._rows.rows[-1]].work, error)
            return
        except BaseException as error:
            self._lose(error)
            raise
        for drawn in dict.fromkeys(self._owners[row] for row in self._rows.rows):
            drawn.paused = drawn.job.pauses
            self._book.tell(Progress(drawn.work.handle, *drawn.progress))
            if drawn.before:
                self._preview(drawn)
            if not drawn.paused:
                self._finish(drawn)

    def resume(self, handle: Handle, latents: torch.Tensor | None) -> None:
        drawn = self._paused(handle)
        if latents is not None:
            for row, z in zip(drawn.rows, latents, strict=True):
                self._rows.write_z(row, z)
        drawn.paused = False
        if drawn.finished:
            self._finish(drawn)

    def latents(self, handle: Handle) -> torch.Tensor:
        return torch.stack([self._rows.z(row) for row in self._paused(handle).rows])

    def velocities(self, handle: Handle) -> tuple[torch.Tensor, torch.Tensor]:
        of = self._rows.velocities()
        conditional, unconditional = zip(*(of(row) for row in self._paused(handle).rows), strict=True)
        return torch.stack(conditional), torch.stack(unconditional)

    def _finish(self, drawn: Drawn) -> None:
        """Let rows go that have had all their evaluations."""
        handle = drawn.work.handle
        for row in drawn.rows:
            if not row.finished or row in drawn.latents:
                continue
            z = drawn.latents[row] = self._rows.z(row)
            if not bool(z.isfinite().all()):
                error = NonFiniteError(
                    f"an image of {len(row.request.prompt)} prompt tokens left the range of its dtype: expected finite "
                    "latents, got NaN or inf. A smaller guidance_scale keeps them in it, or dtype='float32'"
                )
                self._book.end(handle, Failed(handle, error))
                return
            self._let_go([row])
        if drawn.finished:
            handle.flowed_at = time.perf_counter()
            latents = [drawn.latents[row] for row in drawn.rows]
            if drawn.job.decode:
                self._book.pieces.append((drawn.work, self._show(handle, latents)))
            else:
                self._book.end(handle, Finished(handle, torch.stack(latents)))

    def _preview(self, drawn: Drawn) -> None:
        """Straight on from the last evaluation's step to t = 1."""
        heading = []
        for row, z, before in zip(drawn.rows, self._all_latents(drawn), drawn.before, strict=True):
            times = (*row.request.schedule.times, 1.0)
            at = min(row.taken, len(times) - 1)
            heading.append(z + (z - before) * (1 - times[at]) / (times[at] - times[at - 1]))
        drawn.before = []
        shown = self._show_preview(drawn.work.handle, drawn.progress[0], torch.stack(heading), drawn.job.full_previews)
        self._book.pieces.append((drawn.work, shown))

    def _all_latents(self, drawn: Drawn) -> list[torch.Tensor]:
        return [drawn.latents[row] if row in drawn.latents else self._rows.z(row) for row in drawn.rows]

    def _show_preview(self, handle: Handle, step: int, latents: torch.Tensor, full: bool) -> Piece:
        linear = self._runner.previews.map
        if linear is not None and not full:
            self._book.tell(Preview(handle, step, linear.show(latents)))
            return
        pictures = []
        for n, z in enumerate(latents):
            if n:
                yield
            pictures.append(decode(self._runner, z[None]))
        self._book.tell(Preview(handle, step, (torch.cat(pictures).clamp(-1, 1) + 1) / 2))

    def _show(self, handle: Handle, latents: Sequence[torch.Tensor]) -> Piece:
        pictures = []
        for n, z in enumerate(latents):
            if n:
                yield
            pictures.append(decode(self._runner, z[None]))
            self._runner.previews.learn(z[None], pictures[-1])
        self._book.end(handle, Finished(handle, torch.cat(pictures)))

    def _let_go(self, rows: Iterable[FlowRow]) -> None:
        for row in rows:
            if self._owners.pop(row, None) is not None:
                self._rows.remove(row)

    def _paused(self, handle: Handle) -> Drawn:
        drawn = self._jobs.get(handle)
        if drawn is None or not drawn.paused:
            state = "has ended, or waits" if drawn is None else "runs"
            raise InputError(f"handle: expected a job that paused, got one that {state}")
        return drawn

    def _lose(self, error: BaseException) -> None:
        """An evaluation was cut short, and what its rows hold is not to be used: their jobs end."""
        lost = dict.fromkeys(self._owners[row] for row in self._rows.rows)
        self._owners.clear()
        self._rows.forget()
        for drawn in lost:
            self._book.end(drawn.work.handle, Failed(drawn.work.handle, cut_short(error)))
