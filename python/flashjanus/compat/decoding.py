"""Decodes a batch token by token, on the engine or on torch: the sequence is read once, and each step gives logits."""

from __future__ import annotations

from collections.abc import Callable
from types import TracebackType
from typing import Any, Protocol

import torch
from torch import nn
from typing_extensions import Self

from flashjanus.compat.engine import Engine
from flashjanus.compat.memory import room
from flashjanus.engine.runtime.entry import entry
from flashjanus.execution.text import TextPrefix, TextRequest
from flashjanus.execution.text_rows import DecodeSession


class Decoder(Protocol):
    """first() returns the logits (B, V) after the sequence. step(tokens (B,)) appends tokens and returns the next
    logits."""

    def __enter__(self) -> Self: ...
    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None: ...
    def first(self) -> torch.Tensor: ...
    def step(self, tokens: torch.Tensor) -> torch.Tensor: ...


def last_seen(hidden: torch.Tensor, mask: torch.Tensor) -> torch.Tensor:
    """The hidden state (B, D) of each row's last visible token, of hidden (B, N, D) and mask (B, N). Padding may be on
    either side."""
    places = torch.arange(mask.shape[1], device=mask.device)
    last = (places * mask).argmax(1).to(hidden.device)
    return hidden[torch.arange(len(hidden), device=hidden.device), last]


class EngineDecoder:
    """Decodes on the engine: reads all rows at once, then runs `decode_step`."""

    def __init__(
        self,
        engine: Engine,
        head: nn.Module,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
        new: int,
    ) -> None:
        self._engine, self._device, self._dtype = engine, embeds.device, embeds.dtype
        seen = mask.cpu()
        hidden, tokens = engine.read(embeds, seen, positions.cpu(), None, True)
        assert tokens is not None
        self._tokens = tokens
        self._logits: torch.Tensor = head(last_seen(hidden, mask)).float()
        lengths = seen.sum(1)
        self._bucket = (len(embeds), room(int(lengths.max()) + new), 1)
        self._session: DecodeSession | None = None

    def first(self) -> torch.Tensor:
        return self._logits

    @entry
    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        if self._session is None:
            self._session = self._engine.runner.take(DecodeSession, *self._bucket)
            self._join(self._session, tokens.tolist())
        else:
            self._session.states["token"].copy_(tokens)
        self._session.step()
        return self._session.executor.outputs["logits"].to(self._device, torch.float32, copy=True)

    def _join(self, session: DecodeSession, first: list[int]) -> None:
        states, start, end = self._tokens.lease.session.states, self._tokens.start.tolist(), self._tokens.length
        for row, token in enumerate(first):
            k, v = (states[name][:, row, start[row] : end] for name in ("k_cache", "v_cache"))
            session.join(row, TextRequest(()), TextPrefix((), k, v), token, None)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._session is not None:
            self._engine.runner.give(self._session, DecodeSession, *self._bucket)
            self._session = None


class TorchDecoder:
    """Decodes on the torch modules, with their cache."""

    def __init__(
        self,
        model: Callable[..., Any],
        embed: nn.Module,
        head: nn.Module,
        embeds: torch.Tensor,
        mask: torch.Tensor,
        positions: torch.Tensor,
    ) -> None:
        self._model, self._embed, self._head = model, embed, head
        self._mask, self._next = (
            mask,
            positions.gather(1, (mask.cumsum(1) == mask.sum(1)[:, None]).int().argmax(1)[:, None]),
        )
        out = model(inputs_embeds=embeds, attention_mask=mask, position_ids=positions, use_cache=True)
        self._past = out.past_key_values
        self._logits: torch.Tensor = head(last_seen(out.last_hidden_state, mask)).float()

    def first(self) -> torch.Tensor:
        return self._logits

    def step(self, tokens: torch.Tensor) -> torch.Tensor:
        self._mask = torch.cat([self._mask, self._mask.new_ones(len(tokens), 1)], 1)
        self._next = self._next + 1
        out = self._model(
            inputs_embeds=self._embed(tokens[:, None]),
            attention_mask=self._mask,
            position_ids=self._next,
            past_key_values=self._past,
            use_cache=True,
        )
        self._past = out.past_key_values
        logits: torch.Tensor = self._head(out.last_hidden_state[:, -1]).float()
        return logits

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        """Do nothing: there is no session to return."""
