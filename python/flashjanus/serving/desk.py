"""Where requests meet the scheduler: their jobs go in, its events come out as theirs. One thread has a desk."""

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
    """A request in progress: what is left of its jobs, and their results. ends: by the desk's clock. cached: tokens of
    its prompt that its first job found kept."""

    order: Order
    tell: Tell
    ends: float | None
    waits: dict[Handle, int] = field(default_factory=dict)
    results: dict[int, Any] = field(default_factory=dict)
    begun: bool = False
    partials: int = 0
    cached: int | None = None


class Desk:
    """`take` orders, `step` while `busy`; `tell` of each gets its events, the last of which is its result or Failure.

    limits: as of a scheduler; `queued` bounds requests that have not begun.
    """

    def __init__(
        self, model: JanusFlow, limits: policy.Limits | None = None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._model, self._clock = model, clock
        limits = limits or policy.Limits()
        self._queued = limits.queued
        # the later jobs of a request that has begun are not refused
        self._scheduler = model.scheduler(replace(limits, queued=None))
        self._tickets: dict[Handle, Ticket] = {}
        self._tokens = self._images = 0

    @property
    def busy(self) -> bool:
        return self._scheduler.busy

    @property
    def open(self) -> int:
        """Requests that have neither a result nor failed."""
        return len(set(self._tickets.values()))

    def take(self, order: Order, tell: Tell, since: float | None = None) -> Ticket:
        """Let an order wait for its turn. since: when its deadline begins to count, by the desk's clock."""
        deadline = order.request.deadline
        since = self._clock() if since is None else since
        ticket = Ticket(order, tell, None if deadline is None else since + deadline)
        waiting = self._scheduler.queued
        if self._queued is not None and waiting >= self._queued:
            busy = f"expected at most {self._queued} requests to wait, and {waiting} do; try again later"
            tell(Failure(BusyError(busy)))
        else:
            self._go_on(ticket, None)
            if ticket.waits:  # else it has failed, and was told so
                tell(order.accepted)
        return ticket

    def cancel(self, ticket: Ticket) -> None:
        """Nobody waits for it any more: nothing more is told of it."""
        for handle in ticket.waits:
            self._tickets.pop(handle, None)
            self._scheduler.cancel(handle)
        ticket.waits = {}
        ticket.order.course.close()

    def step(self) -> None:
        """One turn of the scheduler, and what it tells. An error that ended some jobs alone is logged."""
        try:
            events = self._scheduler.step()
        except Exception as error:
            if not is_told(self._scheduler, error):
                raise
            LOG.exception("work on some requests was cut short")
            return
        for event in events:
            ticket = self._tickets.get(event.handle)
            if ticket is not None:
                self._told(ticket, event)

    def lose(self, error: FlashJanusError) -> None:
        """All requests fail of `error`."""
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
        """As many as were asked for, and none of images that are there."""
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
        assert tokenizer is not None  # which made the prompt
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
        """Submit a request's next jobs, or tell its result. held: the rest of an answer's text."""
        request = ticket.order.request
        try:
            jobs = ticket.order.course.send(results)  # type: ignore[arg-type]
            ticket.results = {}
            left = None if ticket.ends is None else ticket.ends - self._clock()
            if left is not None and left < 0:
                raise DeadlineError(f"expected to end by its deadline, which was {-left:.1f} s ago")
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
        except Exception as error:  # a fault of ours, but of this request alone: the scheduler is whole
            LOG.exception("a request could not go on")
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
    """What there is to know of a model that is served."""
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
    )
