"""`generate`: writes new tokens after embeddings or ids, greedily or by sampling."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from contextlib import ExitStack
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from flashjanus.compat.decoding import Decoder, EngineDecoder, TorchDecoder
from flashjanus.compat.outputs import Output
from flashjanus.compat.said import warn
from flashjanus.compat.selection import Options, Processor
from flashjanus.errors import InputError

if TYPE_CHECKING:
    from flashjanus.compat.core import Core


class GenerationMixin:
    """Adds `generate` to a module that has `model`, `lm_head`, `get_input_embeddings`, and `core`."""

    core: Core
    config: Any
    model: Any
    lm_head: Any
    generation_config: Any = None
    """Default options: a mapping, or transformers' GenerationConfig."""
    get_input_embeddings: Callable[[], nn.Module]

    @torch.no_grad()
    def generate(
        self,
        inputs: torch.Tensor | None = None,
        generation_config: Any = None,
        logits_processor: Iterable[Processor] | Processor | None = None,
        stopping_criteria: Any = None,
        streamer: Any = None,
        *,
        input_ids: torch.Tensor | None = None,
        inputs_embeds: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        **options: Any,
    ) -> Any:
        """Return int64 token ids (B, T): the new tokens after inputs_embeds (B, N, D), or input_ids (B, N) followed by
        the new tokens.

        After an eos_token_id a row is filled with pad_token_id. attention_mask (B, N) is 0 where a token is hidden;
        padding may be on either side. logits_processor: functions of (ids, scores (B, V)) that return scores.
        stopping_criteria: functions of (ids, scores) that return, for each row or for all rows, whether to stop.
        streamer: an object with put(ids) and end(). Sampling draws from torch's default generator, which
        torch.manual_seed seeds. With return_dict_in_generate the result is an Output(sequences, scores, logits).
        Raises InputError.
        """
        chosen = Options.of(generation_config or self.generation_config, options)
        ids = inputs if input_ids is None else input_ids
        if ids is None and inputs_embeds is None:
            raise InputError("generate: expected input_ids or inputs_embeds, got neither")
        embeds: torch.Tensor = self.get_input_embeddings()(ids) if inputs_embeds is None else inputs_embeds
        if embeds.dim() != 3 or not embeds.shape[1]:
            raise InputError(f"inputs_embeds: expected (B, N, D) with N of at least 1, got {list(embeds.shape)}")
        mask = torch.ones(embeds.shape[:2], dtype=torch.bool, device=embeds.device)
        if attention_mask is not None:
            if attention_mask.shape != mask.shape:
                raise InputError(f"attention_mask: expected {list(mask.shape)}, got {list(attention_mask.shape)}")
            mask = attention_mask.to(mask.device).bool()
            if not bool(mask.any(1).all()):
                raise InputError("attention_mask: expected at least one 1 in each row, got a row of zeros")
        if ids is None:
            ids = torch.empty(len(embeds), 0, dtype=torch.long, device=embeds.device)
        copies = chosen.num_return_sequences or 1
        if copies > 1:
            embeds, mask, ids = (t.repeat_interleave(copies, 0) for t in (embeds, mask, ids))
        processors = _listed(logits_processor)
        with self._decoder(embeds, mask, self._room(chosen, mask)) as decoder:
            return self._written(decoder, ids, chosen, processors, _listed(stopping_criteria), streamer)

    def _room(self, options: Options, mask: torch.Tensor) -> int:
        """The number of tokens that may be written: max_new_tokens, or fewer if the model's context ends before."""
        assert options.max_new_tokens is not None
        limit = int(self.config.get("max_position_embeddings", 2048))
        length = int(mask.sum(1).max())
        room = limit + 1 - length
        if room < 1:
            raise InputError(f"inputs: expected at most {limit} tokens, the model's context, got {length}")
        if options.max_new_tokens > room:
            warn(
                f"max_new_tokens is {options.max_new_tokens}, but the model's context of {limit} tokens has room for "
                f"only {room} after {length}: the answer ends there.",
                UserWarning,
            )
            options.max_new_tokens = room
        return options.max_new_tokens

    def _decoder(self, embeds: torch.Tensor, mask: torch.Tensor, new: int) -> Decoder:
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        assert isinstance(self, nn.Module)
        refusal = None
        if embeds.dtype is not next(self.parameters()).dtype:
            refusal = f"inputs_embeds are {embeds.dtype}, but the weights are {next(self.parameters()).dtype}"
        engine = self.core.eligible(self, refusal)
        if engine is not None:
            return EngineDecoder(engine, self.lm_head, embeds, mask, positions, new)
        return TorchDecoder(self.model, self.get_input_embeddings(), self.lm_head, embeds, mask, positions)

    def _written(
        self,
        decoder: Decoder,
        ids: torch.Tensor,
        options: Options,
        processors: Sequence[Processor],
        criteria: Sequence[Any],
        streamer: Any,
    ) -> Any:
        ends = torch.tensor(options.ends, device=ids.device)
        fill = options.pad_token_id if options.pad_token_id is not None else (options.ends or [0])[0]
        going = torch.ones(len(ids), dtype=torch.bool, device=ids.device)
        scores: list[torch.Tensor] = []
        raw: list[torch.Tensor] = []
        logits, written = decoder.first(), 0
        assert options.max_new_tokens is not None
        with ExitStack() as stack:
            if streamer is not None:
                streamer.put(ids.cpu())
                stack.callback(streamer.end)
            while True:
                score = options.scores(logits, ids, written, processors)
                if options.output_scores:
                    scores.append(score)
                if options.output_logits:
                    raw.append(logits)
                token = torch.where(going, options.choose(score).to(ids.device), fill)
                ids, written = torch.cat([ids, token[:, None]], 1), written + 1
                if streamer is not None:
                    streamer.put(token.cpu())
                going &= ~torch.isin(token, ends)
                for done in criteria:
                    going &= ~torch.as_tensor(done(ids, tuple(scores) or None), device=going.device)
                if written >= options.max_new_tokens or not bool(going.any()):
                    break
                logits = decoder.step(token)
        if not options.return_dict_in_generate:
            return ids
        kept = {"scores": tuple(scores) or None, "logits": tuple(raw) or None}
        return Output(sequences=ids, **kept)


def _listed(given: Any) -> list[Any]:
    """A list of functions, from one function, several, or None."""
    if given is None:
        return []
    return list(given) if isinstance(given, Iterable) else [given]
