"""The engine of a torch model, which computes the eligible calls of its modules."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import torch

from flashjanus.api.janusflow import JanusFlow
from flashjanus.compat.cache import Cache, Pair
from flashjanus.compat.memory import Lease, Reading, Recall, Tokens, room, scatter, slots_of
from flashjanus.engine.runtime.entry import entry
from flashjanus.execution import parts


class Engine:
    """Computes the official modules' calls on tensors in their layouts and dtypes."""

    def __init__(self, model: JanusFlow) -> None:
        self.model, self.runner, self.config = model, model.runner, model.config
        self.recall = Recall()
        self._lock = threading.Lock()

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """Features (B, N, W), before the aligner, of normalized pixels (B, 3, S, S)."""
        return parts.visual_features(self.runner, pixels).to(pixels.device, pixels.dtype)

    def encode(self, z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """Encode latents z (B, c, H, W) at times t (B,) into x (B, C, h, w) and t_emb (B, D).

        If the second half of the rows repeats the first, as it does for guidance, one half is computed and copied.
        """
        half = len(z) // 2
        twice = len(z) == 2 * half and torch.equal(z[:half], z[half:]) and torch.equal(t[:half], t[half:])
        rows = slice(0, half if twice else len(z))
        x, t_emb = parts.encode_latents(self.runner, z[rows], t[rows])
        if twice:
            x, t_emb = torch.cat([x, x]), torch.cat([t_emb, t_emb])
        return x.permute(0, 3, 1, 2).to(z.device, z.dtype), t_emb.to(z.device, z.dtype)

    def decode(self, h: torch.Tensor, skip: torch.Tensor, t_emb: torch.Tensor) -> torch.Tensor:
        """The velocity (B, c, H, W) from aligned hidden states h (B, C, h, w), the encoder's x (B, C, h, w) as `skip`,
        and t_emb (B, D)."""
        flat = h.permute(0, 2, 3, 1).flatten(1, 2)
        v = parts.decode_velocity(self.runner, flat, skip.permute(0, 2, 3, 1), t_emb)
        return v.to(h.device, h.dtype)

    @entry
    def read(
        self, embeds: torch.Tensor, seen: torch.Tensor, positions: torch.Tensor, past: Cache | None, keeps: bool
    ) -> tuple[torch.Tensor, Tokens | None]:
        """Read embeds (R, N, D) after the tokens of `past`. Returns their hidden states (R, N, D) and, with `keeps`,
        the keys and values of all tokens.

        seen (R, past + N) and positions (R, N) are on the CPU. If a recent sequence began with the same tokens, only
        the rest is read.
        """
        with self._lock:
            if past is not None:
                return self._continued(embeds, seen, positions, past, keeps)
            slots, start = slots_of(seen)
            found, common = self.recall.begins(embeds, positions, slots, start)
            lease = self._lease(None if found is None else found.tokens, common, *embeds.shape[:2])
            hidden = _read(lease, embeds, seen, positions, slots, start, common)
            if found is not None:
                hidden = torch.cat([found.hidden[:, :common], hidden], 1)
            tokens = Tokens(lease, slots, seen, start, embeds.detach().clone())
            self.recall.keep(Reading(tokens, positions, hidden))
            kept = tokens.cropped(tokens.length) if keeps else None
            return hidden.clone(), kept

    def _continued(
        self, embeds: torch.Tensor, seen: torch.Tensor, positions: torch.Tensor, past: Cache, keeps: bool
    ) -> tuple[torch.Tensor, Tokens]:
        length, rows, new = past.get_seq_length(), *embeds.shape[:2]
        before = past.held if isinstance(past.held, Tokens) and past.held.lease.runner is self.runner else None
        goes_on = (
            before is not None
            and before.packed
            and torch.equal(before.seen, seen[:, :length])
            and bool(seen[:, length:].all())
        )
        if before is not None and goes_on:
            self.recall.forget(before.lease)
            start = before.start
            slots = torch.cat([before.slots, (length + torch.arange(new)).expand(rows, new)], 1)
            lease = self._lease(before, length, rows, length + new)
        else:
            slots, start = slots_of(seen)
            pairs: Sequence[Pair] = before.pairs() if before is not None else past.pairs
            lease = Lease(self.runner, rows, room(length + new))
            scatter(lease, slots[:, :length], pairs)
        hidden = _read(lease, embeds, seen, positions, slots, start, length, length)
        unknown = embeds.new_full((rows, length, embeds.shape[2]), torch.nan)
        whole = torch.cat([unknown if before is None else before.embeds, embeds.detach()], 1)
        return hidden, Tokens(lease, slots, seen, start, whole)

    def _lease(self, before: Tokens | None, common: int, rows: int, total: int) -> Lease:
        """Memory for `total` tokens, the first `common` of which are those of `before`. This is the memory of `before`
        if nobody else needs the part that will be written, and otherwise new memory with a copy of these tokens."""
        slots = room(total)
        if before is None:
            return Lease(self.runner, rows, slots)
        if before.lease.bucket[1] >= total and before.lease.writable(common, before):
            return before.lease
        lease = Lease(self.runner, rows, slots)
        lease.session.take_keys(before.lease.session, common)
        return lease


def _read(
    lease: Lease,
    embeds: torch.Tensor,
    seen: torch.Tensor,
    positions: torch.Tensor,
    slots: torch.Tensor,
    start: torch.Tensor,
    done: int,
    before: int = 0,
) -> torch.Tensor:
    """The hidden states of the tokens from `done` on. embeds and positions begin with token `before`.

    A masked token sees itself and the unmasked tokens before it.
    """
    ends = (start[:, None] + seen.cumsum(1))[:, done:]
    args = (embeds[:, done - before :], positions[:, done - before :], slots[:, done:], start, ends)
    hidden = lease.session.read(*args)
    return hidden.to(embeds.device, embeds.dtype, copy=True)
