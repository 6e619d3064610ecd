"""The engine's memory of tokens that it has read: its users, the slot of each token, and sequences for reuse.

A row's masked tokens (padding, or a prompt that a branch does not see) lie in its first slots, and the others follow in
order. Wherever a mask has its zeros, the keys that a query sees are therefore one range, as the attention rule
requires.
"""

from __future__ import annotations

import weakref
from collections.abc import Sequence
from dataclasses import dataclass, field

import torch

from flashjanus.compat.cache import Pair
from flashjanus.execution.parts import EmbedsSession
from flashjanus.execution.runner import Runner

KEPT_BYTES = 2**30
"""The most bytes of sequences that are kept for reuse. The last one is kept whatever its size."""


class Lease:
    """A session that is returned to the runner once nothing refers to it."""

    def __init__(self, runner: Runner, rows: int, slots: int) -> None:
        self.runner, self.bucket = runner, (rows, slots)
        self.session: EmbedsSession = runner.take(EmbedsSession, rows, slots)
        self.holders: weakref.WeakSet[Tokens] = weakref.WeakSet()

    def __del__(self) -> None:
        session = getattr(self, "session", None)
        if session is not None:
            self.runner.give(session, EmbedsSession, *self.bucket)

    def writable(self, first: int, by: Tokens | None) -> bool:
        """True if nobody but `by` uses slot `first` or a later one."""
        return self.bucket[1] > first and all(one is by or one.length <= first for one in list(self.holders))


@dataclass(eq=False)
class Tokens:
    """n tokens of R rows in a lease's memory. slots: (R, n). seen: (R, n), false for masked tokens. start: (R,), the
    first slot of a token that is not masked."""

    lease: Lease
    slots: torch.Tensor
    seen: torch.Tensor
    start: torch.Tensor
    embeds: torch.Tensor
    """(R, n, D), the embeddings that were read."""

    def __post_init__(self) -> None:
        self.lease.holders.add(self)

    @property
    def length(self) -> int:
        return self.slots.shape[1]

    @property
    def packed(self) -> bool:
        """True if the tokens fill the first slots, so that more can follow."""
        return bool((self.slots < self.length).all())

    def cropped(self, length: int) -> Tokens:
        parts = (self.slots[:, :length], self.seen[:, :length], self.start, self.embeds[:, :length])
        return Tokens(self.lease, *parts)

    def pairs(self) -> list[Pair]:
        """Copies of each layer's keys and values, (R, G, n, D)."""
        states = self.lease.session.states
        rows, slots = torch.arange(len(self.slots))[:, None], self.slots
        return [
            (k[rows, slots].transpose(1, 2), v[rows, slots].transpose(1, 2))
            for k, v in zip(states["k_cache"], states["v_cache"], strict=True)
        ]


def slots_of(seen: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The slots (R, n) of tokens that are `seen` (R, n) or not, and the first slot (R,) of a seen token."""
    hidden = ~seen
    start = hidden.sum(1)
    slots = torch.where(seen, start[:, None] + seen.cumsum(1) - 1, hidden.cumsum(1) - 1)
    return slots, start


def room(tokens: int) -> int:
    """The slots of a session for this many tokens, rounded up so that one more token rarely needs another session."""
    return -(-tokens // 64) * 64


def scatter(lease: Lease, slots: torch.Tensor, pairs: Sequence[Pair]) -> None:
    """Write each layer's keys and values (R, G, n, D) into slots (R, n)."""
    rows = torch.arange(len(slots))[:, None]
    states = lease.session.states
    for layer, (k, v) in enumerate(pairs):
        for name, value in (("k_cache", k), ("v_cache", v)):
            state = states[name][layer]
            state[rows, slots] = value.transpose(1, 2).to(device=state.device, dtype=state.dtype)


@dataclass(eq=False)
class Reading:
    """A whole sequence that was read from its start: its tokens, positions (R, n), and hidden states (R, n, D)."""

    tokens: Tokens
    positions: torch.Tensor
    hidden: torch.Tensor

    @property
    def nbytes(self) -> int:
        return self.tokens.lease.session.nbytes + 2 * self.hidden.nbytes


@dataclass
class Recall:
    """The latest readings. `hits` counts the sequences that began like one of them, and `reused` the tokens that were
    thereby not read again."""

    readings: list[Reading] = field(default_factory=list)
    hits: int = 0
    reused: int = 0

    def begins(
        self, embeds: torch.Tensor, positions: torch.Tensor, slots: torch.Tensor, start: torch.Tensor
    ) -> tuple[Reading | None, int]:
        """Take out the reading that shares the longest beginning with this sequence. Returns it and the length of that
        beginning, which leaves at least one token to read."""
        best, most = None, 0
        for one in self.readings:
            tokens = one.tokens
            if len(tokens.slots) != len(slots) or tokens.embeds.dtype != embeds.dtype:
                continue
            n = min(tokens.length, embeds.shape[1] - 1)
            same = (tokens.embeds[:, :n] == embeds[:, :n]).all(2).all(0).cpu()
            same &= (one.positions[:, :n] == positions[:, :n]).all(0) & (tokens.slots[:, :n] == slots[:, :n]).all(0)
            common = int(same.int().cumprod(0).sum())
            packed = common and torch.equal(tokens.start, start) and bool((slots[:, :common] < common).all())
            if packed and common > most:
                best, most = one, common
        if best is not None:
            self.readings.remove(best)
            self.hits += 1
            self.reused += most
        return best, most

    def keep(self, reading: Reading) -> None:
        self.readings.append(reading)
        while len(self.readings) > 1 and sum(one.nbytes for one in self.readings) > KEPT_BYTES:
            del self.readings[0]

    def forget(self, lease: Lease) -> None:
        """Drop the readings in a lease's memory, which is about to be overwritten."""
        self.readings = [one for one in self.readings if one.tokens.lease is not lease]
