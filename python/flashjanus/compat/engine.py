"""The engine of a torch model: what its modules' calls run on where they are eligible."""

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
    """Calls of the official modules, by tensors in their layouts and dtypes."""

    def __init__(self, model: JanusFlow) -> None:
        self.model, self.runner, self.config = model, model.runner, model.config
        self.recall = Recall()
        self._lock = threading.Lock()

    def features(self, pixels: torch.Tensor) -> torch.Tensor:
        """(B, N, W) of normalized pixels (B, 3, S, S), before the aligner."""
        return parts.visual_features(self.runner, pixels).to(pixels.device, pixels.dtype)

    def encode(self, z: torch.Tensor, t: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        """x (B, C, h, w) and t_emb (B, D) of latents z (B, c, H, W) at times t (B,).

        Where the second half of the rows is the first once more, as for guidance, it is computed once.
        """
        half = len(z) // 2
        twice = len(z) == 2 * half and torch.equal(z[:half], z[half:]) and torch.equal(t[:half], t[half:])
        rows = slice(0, half if twice else len(z))
        x, t_emb = parts.encode_latents(self.runner, z[rows], t[rows])
        if twice:
            x, t_emb = torch.cat([x, x]), torch.cat([t_emb, t_emb])
        return x.permute(0, 3, 1, 2).to(z.device, z.dtype), t_emb.to(z.device, z.dtype)

    def decode(self, h: torch.Tensor, skip: torch.Tensor, t_emb: torch.Tensor) -> torch.Tensor:
        """Velocity (B, c, H, W) of aligned hidden states h and the encoder's x (B, C, h, w), and t_emb (B, D)."""
        flat = h.permute(0, 2, 3, 1).flatten(1, 2)
        v = parts.decode_velocity(self.runner, flat, skip.permute(0, 2, 3, 1), t_emb)
        return v.to(h.device, h.dtype)

    @entry
    def read(
        self, embeds: torch.Tensor, seen: torch.Tensor, positions: torch.Tensor, past: Cache | None, keeps: bool
    ) -> tuple[torch.Tensor, Tokens | None]:
        """Hidden states (R, N, D) of embeds (R, N, D), read after what `past` holds; and with `keeps` all tokens.

        seen (R, past + N), positions (R, N), on the CPU. A sequence that begins like one that was read lately is read
        from where they differ.
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
        """Memory for `total` tokens whose first `common` are those of `before`: its own, where nobody else needs what
        will be written, or another with a copy of them."""
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
    """Hidden states of the tokens from `done` on; embeds and positions begin with token `before`.

    A hidden token sees those before it that are not, and itself.
    """
    ends = (start[:, None] + seen.cumsum(1))[:, done:]
    args = (embeds[:, done - before :], positions[:, done - before :], slots[:, done:], start, ends)
    hidden = lease.session.read(*args)
    return hidden.to(embeds.device, embeds.dtype, copy=True)
