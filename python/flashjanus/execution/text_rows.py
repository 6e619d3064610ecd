"""The rows of the answers that are being written."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from functools import cached_property

from flashjanus.engine.runtime.bound import ProcessBound
from flashjanus.engine.runtime.cuda import Staging
from flashjanus.engine.runtime.entry import entry
from flashjanus.execution import adapters
from flashjanus.execution.buckets import padded
from flashjanus.execution.likelihood import Likelihood, Likelihoods
from flashjanus.execution.rows import Rows
from flashjanus.execution.runner import Runner
from flashjanus.execution.text import TextPrefix, TextRequest, fetch_tokens, write_sampling


class DecodeSession(ProcessBound):
    """Memory of a bucket: B rows, S key slots, K new tokens. A row's keys begin in slot 0."""

    @entry
    def __init__(self, runner: Runner, rows: int, slots: int, new: int) -> None:
        self.executor = runner.executor("decode_step", B=rows, S=slots, K=new)
        self.states, self.rows = self.executor.states, rows
        self._last = runner.config.language.max_position_embeddings - 1
        self._written = True
        adapters.write(self.executor, range(rows), None)
        self._staging = None if runner.gpu is None else Staging(runner.gpu, self.states["token"].nbytes)

    @property
    def nbytes(self) -> int:
        return self.executor.nbytes

    @entry
    def join(self, row: int, request: TextRequest, prefix: TextPrefix, token: int, eos: int | None) -> None:
        """Put a request in `row`. All of its tokens have been read, and `token` comes next."""
        states, length = self.states, prefix.k.shape[1]
        states["k_cache"][:, row, :length].copy_(prefix.k)
        states["v_cache"][:, row, :length].copy_(prefix.v)
        states["seen"][row].zero_()
        states["seen"][row, token] = 1
        numbers = dict(token=token, position=min(length, self._last), slot=length, step=1, live=1)
        for name, value in numbers.items():
            states[name][row] = value
        self._settle(row, request, eos)

    @entry
    def take_over(
        self, row: int, request: TextRequest, eos: int | None, other: DecodeSession, other_row: int, used: int
    ) -> None:
        """Continue in `row` with the state of row `other_row` of `other`, whose first `used` slots hold keys."""
        for name in self.states:
            to, made = self.executor.row(name, row), other.executor.row(name, other_row)
            if name in ("k_cache", "v_cache"):
                to, made = to[:, :used], made[:, :used]
            to.copy_(made)
        self._settle(row, request, eos)

    @entry
    def leave(self, row: int) -> None:
        """Remove `row`, for which nobody waits any more: it moves no further."""
        self.states["live"][row] = 0
        adapters.write(self.executor, (row,), None)
        self._written = True

    @entry
    def step(self) -> Callable[[], list[int]]:
        """Decode one token of every row. Returns a function that waits for the tokens (B,); call it before the next
        step but one."""
        if self._written:
            self.executor.upload()
            self._written = False
        self.executor.run()
        return fetch_tokens(self.states["token"], self._staging)

    @entry
    def likelihoods(self, asked: Sequence[tuple[int, int]]) -> Callable[[], list[Likelihood]]:
        """The likelihoods of the last step's tokens for (row, number of likeliest tokens) pairs, as a function that
        is called like the result of `step`."""
        return self._likelihoods.fetch(asked)

    @cached_property
    def _likelihoods(self) -> Likelihoods:
        return Likelihoods(self.executor)

    def _settle(self, row: int, request: TextRequest, eos: int | None) -> None:
        host = self.executor.host
        host["kv_start"][row] = 0
        host["eos"][row] = -1 if eos is None else eos
        write_sampling(self.executor, row, request.sampling)
        adapters.write(self.executor, (row,), request.adapter)
        self._written = True


@dataclass(eq=False)
class TextRow:
    """An answer that is being written: its tokens so far, at most `room`. likeliest: as TextJob.logprobs."""

    request: TextRequest
    prefix: TextPrefix
    room: int
    eos: int | None
    likeliest: int | None = None
    tokens: list[int] = field(default_factory=list)
    place: int | None = None

    @property
    def finished(self) -> bool:
        return len(self.tokens) >= self.room or self.tokens[-1] == self.eos


class TextRows(Rows[TextRow, DecodeSession]):
    """Answer rows in a DecodeSession."""

    counts = 1
    make = DecodeSession

    def bucket(self, rows: Iterable[TextRow]) -> tuple[int, ...]:
        buckets, sizes = self.runner.buckets, [(row.prefix.k.shape[1], row.room) for row in rows]
        new = padded(max(room for _, room in sizes), buckets.new_tokens)
        slots = max(padded(length, buckets.prompt_tokens) + padded(room, buckets.new_tokens) for length, room in sizes)
        return padded(len(sizes), buckets.rows), slots, new

    def join(self, session: DecodeSession, place: int, row: TextRow) -> None:
        session.join(place, row.request, row.prefix, row.tokens[-1], row.eos)

    def move(self, session: DecodeSession, place: int, row: TextRow, before: DecodeSession) -> None:
        assert row.place is not None
        used = row.prefix.k.shape[1] + len(row.tokens)  # plus one token if the device is a step ahead
        session.take_over(place, row.request, row.eos, before, row.place, used)

    def step(self) -> Callable[[], list[tuple[TextRow, int, Likelihood | None]]]:
        """Decode one token of every row. Returns a function that waits for the tokens and, for rows that ask, their
        likelihoods. If it raises OutOfMemoryError, the rows are as before."""
        session = self.settled()
        fetched = session.step()
        placed = [(row, row.place) for row in self.rows if row.place is not None]
        asked = [(place, row.likeliest) for row, place in placed if row.likeliest is not None]
        measured = session.likelihoods(asked) if asked else list

        def result() -> list[tuple[TextRow, int, Likelihood | None]]:
            tokens, found = fetched(), dict(zip([place for place, _ in asked], measured(), strict=True))
            return [(row, tokens[place], found.get(place)) for row, place in placed]

        return result

    def read(self, row: TextRow) -> TextPrefix:
        """A copy of what a row has read and written, except for its last token."""
        if row.place is None or self.session is None:
            return row.prefix
        names = (*row.prefix.names, *self.runner.adapters.named(row.tokens[:-1], row.request.adapter))
        k, v = (self.session.states[name][:, row.place, : len(names)].clone() for name in ("k_cache", "v_cache"))
        return TextPrefix(names, k, v)
