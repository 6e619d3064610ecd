"""The rows of the images that are being drawn."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace

import torch

from flashjanus.execution.buckets import padded
from flashjanus.execution.flow import FlowPrefix, FlowRequest, FlowSession
from flashjanus.execution.rows import Rows
from flashjanus.sampling.checks import MAX_STEPS


@dataclass(eq=False)
class FlowRow:
    """An image that is being drawn. taken: the number of its evaluations so far."""

    request: FlowRequest
    prefix: FlowPrefix
    taken: int = 0
    place: int | None = None

    @property
    def finished(self) -> bool:
        return self.taken >= len(self.request.schedule)


class FlowRows(Rows[FlowRow, FlowSession]):
    """Image rows in a FlowSession. Guided rows come first, those with the most evaluations left before the others."""

    counts = 2
    make = FlowSession

    def bucket(self, rows: Iterable[FlowRow]) -> tuple[int, ...]:
        buckets, requests = self.runner.buckets, [row.request for row in rows]
        count = padded(len(requests), buckets.rows)
        guided = sum(r.schedule.guided for r in requests)
        capacity = padded(max(len(r.prompt) for r in requests), buckets.prompt_tokens)
        steps = min(padded(max(len(r.schedule) for r in requests), buckets.steps), MAX_STEPS)
        skips, caches = (any(getattr(r.schedule, name) for r in requests) for name in ("skips", "caches"))
        return count, buckets.branches(guided, count), capacity, steps, skips, caches

    def placing(self) -> list[FlowRow]:
        """The order in which rows take places: as guidance ends, the last branches can be left out."""
        return sorted(self.rows, key=lambda row: -row.request.schedule.branches_left(row.taken))

    def first_place(self, row: FlowRow) -> int:
        return 0 if row.request.schedule.guided else -1

    def join(self, session: FlowSession, place: int, row: FlowRow) -> None:
        session.join(row.prefix, place, row.request)

    def move(self, session: FlowSession, place: int, row: FlowRow, before: FlowSession) -> None:
        assert row.place is not None
        session.take_over(row.prefix, place, row.request, before, row.place)

    def step(self) -> None:
        """Run one evaluation of every row. If it raises OutOfMemoryError, the rows are as before."""
        self.settled().step()
        for row in self.rows:
            row.taken += 1

    def z(self, row: FlowRow) -> torch.Tensor:
        """The latents (c, H, W) of a row, float32, in their own memory."""
        if self.session is None or row.place is None:
            return row.request.noise.to(torch.float32, copy=True)
        return self.session.z[row.place].to(torch.float32, copy=True)

    def write_z(self, row: FlowRow, z: torch.Tensor) -> None:
        """Replace the latents (c, H, W) of a row between two evaluations; what its solver remembers is kept."""
        if self.session is None or row.place is None:
            row.request = replace(row.request, noise=z)
        else:
            self.session.z[row.place].copy_(z)

    def velocities(self) -> Callable[[FlowRow], tuple[torch.Tensor, torch.Tensor]]:
        """Return a function from a row to its conditional and unconditional velocity (c, H, W) in the last
        evaluation, before guidance. The unconditional one is NaN if the row did not need it, and both are NaN for a
        row that waits for memory."""
        assert self.session is not None
        cond, uncond = self.session.velocities()

        def of(row: FlowRow) -> tuple[torch.Tensor, torch.Tensor]:
            none = torch.full_like(cond[0], torch.nan)
            if row.place is None:
                return none, none
            fresh = row.request.schedule.needs_branch(row.taken - 1)
            return cond[row.place], uncond[row.place] if fresh else none

        return of

    def added(self, row: FlowRow) -> tuple[torch.Tensor, torch.Tensor]:
        """What the language model added to its input (N, D), float32, in the last evaluation of a row with a step
        cache, in the conditional and the unconditional branch. It is NaN where the model or that branch did not run,
        and for a row that waits for memory."""
        config, schedule, last = self.runner.config, row.request.schedule, row.taken - 1
        assert self.session is not None
        shape = config.num_image_tokens, config.language.hidden_size
        none = torch.full(shape, torch.nan, dtype=torch.float32, device=self.session.z.device)
        if row.place is None or not schedule.needs_model(last):
            return none, none
        conditional, unconditional = self.session.added(row.place, int(schedule.cache[last].slot))
        return conditional, unconditional if unconditional is not None and schedule.needs_branch(last) else none
