"""Image jobs: their prompts are prepared, all images are evaluated together, and pictures are decoded."""

from __future__ import annotations

import time
from collections import deque
from collections.abc import Iterable
from dataclasses import dataclass, field
from functools import partial

import torch

from flashjanus.errors import InputError, NonFiniteError, OutOfMemoryError
from flashjanus.execution.adapters import Adapter
from flashjanus.execution.flow import FlowPrefix, FlowRequest, TimedPrompt
from flashjanus.execution.flow_rows import FlowRow, FlowRows
from flashjanus.execution.pictures import decode, preview
from flashjanus.execution.prefixes import PrefixStore, prepared
from flashjanus.execution.runner import Runner
from flashjanus.sampling import checks
from flashjanus.scheduling.book import Book, Piece, Work, cut_short
from flashjanus.scheduling.requests import Failed, Finished, Handle, ImageJob, Preview, Progress


@dataclass(eq=False)
class Drawn:
    """The rows of an image job whose prompts are prepared, the latents and pictures of finished rows, and, for a
    preview, all latents before an evaluation.

    among: the group of rows with which they are evaluated.
    """

    work: Work
    job: ImageJob
    among: FlowRows
    rows: list[FlowRow] = field(default_factory=list)
    latents: dict[FlowRow, torch.Tensor] = field(default_factory=dict)
    pictures: list[torch.Tensor] = field(default_factory=list)
    before: list[torch.Tensor] = field(default_factory=list)
    paused: bool = False

    @property
    def progress(self) -> tuple[int, int]:
        """The number of evaluations so far, and of all."""
        return max(row.taken for row in self.rows), max(len(row.schedule) for row in self.job.rows)

    @property
    def preview_due(self) -> bool:
        """True if a preview follows the next evaluation. None follows the last one, because the picture does."""
        if not (self.rows and self.job.preview_every):
            return False
        step, steps = self.progress
        return (step + 1) % self.job.preview_every == 0 and step + 1 < steps

    @property
    def finished(self) -> bool:
        return all(row.finished for row in self.rows)


class Drawing:
    """The image jobs of a scheduler. All rows are evaluated together, except that a job with pauses is evaluated on
    its own."""

    def __init__(self, runner: Runner, prefixes: PrefixStore, book: Book) -> None:
        self._runner, self._prefixes, self._book = runner, prefixes, book
        self._together = FlowRows(runner)
        self._groups = deque([self._together])
        self._jobs: dict[Handle, Drawn] = {}
        self._owners: dict[FlowRow, Drawn] = {}

    @property
    def paused(self) -> bool:
        """True while a job is paused."""
        return any(drawn.paused for drawn in self._jobs.values())

    @property
    def ready(self) -> bool:
        """True if an evaluation has work to do."""
        return any(map(self._ready, self._groups))

    def _ready(self, group: FlowRows) -> bool:
        return bool(group.rows) and not self._owners[group.rows[0]].paused

    @property
    def gathering(self) -> bool:
        """True if no image has been evaluated, and some are being prepared to be evaluated together."""
        begun = any(row.taken for row in self._together.rows)
        return not begun and any(not drawn.rows for drawn in self._jobs.values() if drawn.among is self._together)

    def begin(self, work: Work, job: ImageJob) -> Piece:
        """Prepare a job's prompts, then add its rows."""
        among = FlowRows(self._runner) if job.pauses else self._together
        drawn = self._jobs[work.handle] = Drawn(work, job, among)
        found: dict[tuple[TimedPrompt, bool, Adapter | None], FlowPrefix] = {}

        def key_of(request: FlowRequest) -> tuple[TimedPrompt, bool, Adapter | None]:
            return request.timed_prompt, request.schedule.guided, request.adapter

        for request in job.rows:
            key = key_of(request)
            if key not in found:
                if found:
                    yield
                uses, hits = self._prefixes.prompts, self._prefixes.prompts.hits
                found[key] = prepared(self._runner, self._prefixes, request)
                if len(found) == 1 and uses.hits > hits:
                    work.handle.cached = len(request.prompt) + 1  # plus the generation tag
        drawn.rows = [FlowRow(r, found[key_of(r)]) for r in job.rows]
        if job.pauses:
            self._groups.append(among)
        for row in drawn.rows:
            self._owners[row] = drawn
            among.add(row)

    def withdraw(self, handle: Handle) -> None:
        drawn = self._jobs.pop(handle, None)
        if drawn is not None:
            self._let_go(drawn, drawn.rows)
            if drawn.among is not self._together and drawn.rows:
                self._groups.remove(drawn.among)

    def evaluate(self) -> None:
        """Run one evaluation of the images that are due; pieces then decode the pictures of finished images."""
        while not self._ready(self._groups[0]):
            self._groups.rotate(-1)
        group = self._groups[0]
        self._groups.rotate(-1)
        for drawn in dict.fromkeys(self._owners[row] for row in group.rows):
            if drawn.preview_due:
                drawn.before = self._all_latents(drawn)
        try:
            group.step()
        except OutOfMemoryError as error:  # and there is no other image
            self._book.out_of_memory(self._owners[group.rows[-1]].work, error)
            return
        except BaseException as error:
            self._lose(group, error)
            raise
        for drawn in dict.fromkeys(self._owners[row] for row in group.rows):
            drawn.paused = drawn.job.pauses
            self._book.tell(Progress(drawn.work.handle, *drawn.progress))
            if drawn.before:
                self._preview(drawn)
            if not drawn.paused:
                self._finish(drawn)

    def resume(self, handle: Handle, latents: torch.Tensor | None) -> None:
        drawn = self._paused(handle)
        if latents is not None:
            shape = len(drawn.rows), *drawn.rows[0].request.noise.shape
            for row, z in zip(drawn.rows, checks.tensor("latents", latents, shape, checks.FLOATS), strict=True):
                drawn.among.write_z(row, z)
        drawn.paused = False
        if drawn.finished:
            self._finish(drawn)

    def latents(self, handle: Handle) -> torch.Tensor:
        return torch.stack(self._all_latents(self._paused(handle)))

    def velocities(self, handle: Handle) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = self._paused(handle)
        conditional, unconditional = zip(*map(drawn.among.velocities(), drawn.rows), strict=True)
        return torch.stack(conditional), torch.stack(unconditional)

    def added(self, handle: Handle) -> tuple[torch.Tensor, torch.Tensor]:
        drawn = self._paused(handle)
        if not all(row.request.schedule.caches for row in drawn.rows):
            raise InputError("handle: expected a job whose rows all use a step cache, got one with step_cache=1")
        conditional, unconditional = zip(*map(drawn.among.added, drawn.rows), strict=True)
        return torch.stack(conditional), torch.stack(unconditional)

    def _finish(self, drawn: Drawn) -> None:
        """Remove the rows that have had all their evaluations."""
        handle = drawn.work.handle
        for row in drawn.rows:
            if not row.finished or row in drawn.latents:
                continue
            z = drawn.latents[row] = drawn.among.z(row)
            if not bool(z.isfinite().all()):
                error = NonFiniteError(
                    f"expected finite latents, got NaN or inf in an image of {len(row.request.prompt)} prompt "
                    "tokens, whose values overflowed; lower guidance_scale, or use dtype='float32'"
                )
                self._book.end(handle, Failed(handle, error))
                return
            self._let_go(drawn, [row])
        if drawn.finished:
            handle.flowed_at = time.perf_counter()
            if drawn.job.decode:
                drawn.work.again = partial(self._show, drawn)
                self._book.pieces.append((drawn.work, self._show(drawn)))
            else:
                latents = torch.stack([drawn.latents[row] for row in drawn.rows])
                self._book.end(handle, Finished(handle, latents))

    def _preview(self, drawn: Drawn) -> None:
        """Extrapolate from the last evaluation's step straight to t = 1."""
        heading = []
        for row, z, before in zip(drawn.rows, self._all_latents(drawn), drawn.before, strict=True):
            heading.append(z + (z - before) * row.request.schedule.left(row.taken))
        drawn.before = []
        shown = self._show_preview(drawn.work.handle, drawn.progress[0], torch.stack(heading), drawn.job.full_previews)
        self._book.pieces.append((drawn.work, shown))

    def _all_latents(self, drawn: Drawn) -> list[torch.Tensor]:
        return [drawn.latents[row] if row in drawn.latents else drawn.among.z(row) for row in drawn.rows]

    def _show_preview(self, handle: Handle, step: int, latents: torch.Tensor, full: bool) -> Piece:
        full = full or self._runner.previews.map is None  # by the time the next one is decoded, there may be a map
        shown: list[torch.Tensor] = []
        for part in torch.split(latents, 1) if full else [latents]:
            if shown:
                yield
            shown.append(preview(self._runner, part, full))
        self._book.tell(Preview(handle, step, torch.cat(shown)))

    def _show(self, drawn: Drawn) -> Piece:
        """Decode the pictures that are not decoded yet."""
        for row in drawn.rows[len(drawn.pictures) :]:
            drawn.pictures.append(decode(self._runner, drawn.latents[row][None]))
            self._runner.previews.learn(drawn.latents[row][None], drawn.pictures[-1])
            if len(drawn.pictures) < len(drawn.rows):
                yield
        handle = drawn.work.handle
        self._book.end(handle, Finished(handle, torch.cat(drawn.pictures)))

    def _let_go(self, drawn: Drawn, rows: Iterable[FlowRow]) -> None:
        for row in rows:
            if self._owners.pop(row, None) is not None:
                drawn.among.remove(row)

    def _paused(self, handle: Handle) -> Drawn:
        drawn = self._jobs.get(handle)
        if drawn is None or not drawn.paused:
            state = "has ended or waits" if drawn is None else "is running"
            raise InputError(f"handle: expected a paused job, got one that {state}")
        return drawn

    def _lose(self, group: FlowRows, error: BaseException) -> None:
        """End the jobs of an evaluation that was cut short, because their rows hold unusable data."""
        lost = dict.fromkeys(self._owners.pop(row) for row in group.rows)
        group.forget()
        for drawn in lost:
            self._book.end(drawn.work.handle, Failed(drawn.work.handle, cut_short(error)))
