"""Connects requests to the scheduler: it submits their jobs and turns the scheduler's events into theirs. Only one
thread uses a desk."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from flashjanus import __version__
from flashjanus.api.janusflow import JanusFlow
from flashjanus.errors import BusyError, DeadlineError, FlashJanusError
from flashjanus.scheduling import policy
from flashjanus.scheduling.requests import (
    Cancelled,
    Event,
    Failed,
    Finished,
    Handle,
    ImageJob,
    Preview,
    Progress,
    Started,
    Token,
)
from flashjanus.scheduling.scheduler import is_told
from flashjanus.serving import messages, orders
from flashjanus.serving.messages import Answered, Begun, Facts, Failure, Images, Logprob, Partial, Piece, Stats, Step
from flashjanus.serving.orders import Order

LOG = logging.getLogger(__name__)
Tell = Callable[[messages.Event], None]


@dataclass(eq=False)
class Ticket:
    """A request in progress, with its remaining jobs and their results. ends: its deadline by the desk's clock.
    cached: how many tokens of its prompt the first job reused."""

    order: Order
    tell: Tell
    ends: float | None
    waits: dict[Handle, int] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    begun: bool = False
    partials: int = 0
    cached: int | None = None


class Desk:
    """`take` orders, and call `step` while `busy`. The `tell` of each order gets its events; the last one is its result
    or a Failure.

    limits: the scheduler's limits; `queued` bounds the requests that have not begun.
    """

    def __init__(
        self, model: JanusFlow, limits: policy.Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model, self._clock = model, clock
        limits = limits or policy.Limits()
        self._queued = limits.queued
        # once a request has begun, its later jobs are not refused
        self._scheduler = model.scheduler(replace(limits, queued=None))
        self._tickets: dict[Handle, Ticket] = {}
        self._tokens = self._images = 0

    @property
    def busy(self) -> bool:
        return self._scheduler.busy

    @property
    def open(self) -> int:
        """The number of requests that have neither a result nor failed."""
        return len(set(self._tickets.values()))

    def take(self, order: Order, tell: Tell, since: float | None = None) -> Ticket:
        """Queue an order. since: the time by the desk's clock from which its deadline counts."""
        deadline = order.request.deadline
        since = self._clock() if since is None else since
        ticket = Ticket(order, tell, None if deadline is None else since + deadline)
        waiting = self._scheduler.queued
        if self._queued is not None and waiting >= self._queued:
            busy = f"expected at most {self._queued} waiting requests, got {waiting}; try again later"
            tell(Failure(BusyError(busy)))
        else:
            self._go_on(ticket, None)
            if ticket.waits:  # otherwise it has failed and has been told
                tell(order.accepted)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Cancel a request: it gets no further events."""
        for handle in ticket.waits:
            self._tickets.pop(handle, None)
            self._scheduler.cancel(handle)
        ticket.waits = {}
        ticket.order.course.close()

    def step(self) -> None:
        """Run one turn of the scheduler and deliver its events. An error that ended only some jobs is logged."""
        try:
            events = self._scheduler.step()
        except Exception as error:
            if not is_told(self._scheduler, error):
                raise
            LOG.exception("an error interrupted the work on some requests")
            return
        for event in events:
            ticket = self._tickets.get(event.handle)
            if ticket is not None:
                self._told(ticket, event)

    def lose(self, error: FlashJanusError) -> None:
        """Fail all requests with `error`."""
        for ticket in set(self._tickets.values()):
            self.cancel(ticket)
            ticket.tell(Failure(error))

    def _told(self, ticket: Ticket, event: Event) -> None:
        if isinstance(event, Started) and not ticket.begun:
            ticket.begun = True
            ticket.tell(Begun())
        elif isinstance(event, Progress):
            self._step(ticket, event)
        elif isinstance(event, Preview):
            self._preview(ticket, event)
        elif isinstance(event, Token):
            self._tokens += 1
            ticket.tell(self._piece(event))
        elif isinstance(event, Failed):
            self.cancel(ticket)
            ticket.tell(Failure(event.error))
        elif isinstance(event, Finished):
            self._finished(ticket, event)
        elif isinstance(event, Cancelled):
            self._tickets.pop(event.handle, None)

    def _step(self, ticket: Ticket, event: Progress) -> None:
        request = ticket.order.request
        if isinstance(request, messages.ImageRequest) and request.steps:
            ticket.tell(Step(event.step, event.steps))

    def _preview(self, ticket: Ticket, event: Preview) -> None:
        """Deliver a preview, unless enough have been sent or the images are finished."""
        request = ticket.order.request
        assert isinstance(request, messages.ImageRequest)
        if ticket.partials < request.previews and event.step < ticket.order.accepted.steps:
            ticket.tell(Partial(ticket.partials, event.step, [orders.shown(image) for image in event.images]))
            ticket.partials += 1

    def _piece(self, event: Token) -> Piece:
        if event.logprob is None:
            return Piece(event.text)
        likeliest = [self._logprob(*one) for one in event.likeliest]
        return Piece(event.text, self._logprob(event.id, event.logprob), likeliest)

    def _logprob(self, token: int, logprob: float) -> Logprob:
        tokenizer = self._model.tokenizer
        assert tokenizer is not None  # the prompt was made with it
        return Logprob(token, tokenizer.token_bytes(token), logprob)

    def _finished(self, ticket: Ticket, event: Finished) -> None:
        if isinstance(event.handle.job, ImageJob):
            self._images += len(event.result)
        del self._tickets[event.handle]
        if ticket.cached is None:
            ticket.cached = event.handle.cached
        ticket.results[ticket.waits.pop(event.handle)] = event.result
        if not ticket.waits:
            self._go_on(ticket, [ticket.results[n] for n in sorted(ticket.results)], event.text)

    def _go_on(self, ticket: Ticket, results: list[Any] | None, held: str = "") -> None:
        """Submit a request's next jobs, or deliver its result. held: the rest of an answer's text."""
        request = ticket.order.request
        try:
            jobs = ticket.order.course.send(results)  # type: ignore[arg-type]
            ticket.results = {}
            left = None if ticket.ends is None else ticket.ends - self._clock()
            if left is not None and left < 0:
                raise DeadlineError(f"not finished by its deadline, which was {-left:.1f} s ago")
            for number, job in enumerate(jobs):
                handle = self._scheduler.submit(job, priority=request.priority, deadline=left)
                self._tickets[handle], ticket.waits[handle] = ticket, number
        except StopIteration as ended:
            last: Images | Answered = ended.value
            last = replace(last, usage=replace(last.usage, cached_tokens=ticket.cached or 0))
            ticket.tell(replace(last, text=held) if isinstance(last, Answered) else last)
        except FlashJanusError as error:
            self.cancel(ticket)
            ticket.tell(Failure(error))
        except Exception as error:  # a fault of ours that concerns this request alone; the scheduler is intact
            LOG.exception("a request could not continue")
            self.cancel(ticket)
            ticket.tell(Failure(messages.unexpected(error)))

    def stats(self) -> Stats:
        scheduler = self._scheduler
        prefixes, (images, answers) = scheduler.prefixes, scheduler.live
        uses = {kind: getattr(prefixes, kind) for kind in ("prompts", "images", "conversations")}
        return Stats(
            scheduler.queued,
            images,
            answers,
            scheduler.turns,
            self._tokens,
            self._images,
            {kind: (one.hits, one.misses) for kind, one in uses.items()},
            prefixes.nbytes,
            prefixes.evicted,
        )


def facts(model: JanusFlow) -> Facts:
    """Collect the facts of a served model."""
    config, vae = model.config, model.runner.vae_config
    side = None if vae is None else config.latent_size * vae.scale
    return Facts(
        model.name,
        None if side is None else (side, side),
        config.num_image_tokens,
        config.num_understanding_tokens,
        config.language.max_position_embeddings,
        str(model.dtype).removeprefix("torch."),
        str(model.device),
        model.quantization,
        __version__,
        {name: one.source for name, one in model.adapters.items() if not one.merged},
    )
