"""The language model's classes: those of `language_model` and `language_model.model`."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import nn

from flashjanus.checkpoint import JanusFlowConfig
from flashjanus.compat.cache import Cache, foreign_pairs
from flashjanus.compat.core import Core, unit
from flashjanus.compat.engine import Engine
from flashjanus.compat.generation import GenerationMixin
from flashjanus.compat.memory import Tokens
from flashjanus.compat.modules import llama, uvit
from flashjanus.compat.outputs import CacheMisuseWarning, Config, Output
from flashjanus.compat.said import warn
from flashjanus.errors import InputError


@unit
class LlamaModel(nn.Module):
    """Maps embeddings (B, N, D) to hidden states after the final norm, and keeps keys and values in a cache."""

    def __init__(self, config: JanusFlowConfig, shown: Config, core: Core) -> None:
        super().__init__()
        language = config.language
        self.language, self.config, self.core = language, shown, core
        self.embed_tokens = nn.Embedding(language.vocab_size, language.hidden_size)
        self.layers = nn.ModuleList(llama.DecoderLayer(language, i) for i in range(language.num_hidden_layers))
        self.norm = uvit.RMSNorm(language.hidden_size, language.rms_norm_eps)
        self.gradient_checkpointing = False

    def get_input_embeddings(self) -> nn.Module:
        return self.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.embed_tokens = value  # type: ignore[assignment]

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: torch.Tensor | None = None,
    ) -> Any:
        """Return Output(last_hidden_state (B, N, D), past_key_values, hidden_states, attentions), or a tuple with
        return_dict=False.

        attention_mask (B, past + N) is 0 where a token is hidden. position_ids (B, N) or (1, N) default to the
        positions after those in past_key_values, which is None, empty, a cache, or one (key, value) for each layer.
        Raises InputError.
        """
        if (input_ids is None) == (inputs_embeds is None):
            raise InputError("expected either input_ids or inputs_embeds, got both or neither")
        embeds: torch.Tensor = self.embed_tokens(input_ids) if inputs_embeds is None else inputs_embeds
        if embeds.dim() != 3 or not embeds.shape[1]:
            raise InputError(f"inputs_embeds: expected (B, N, D) with N of at least 1, got {list(embeds.shape)}")
        rows, new = embeds.shape[:2]
        keeps = not self.training if use_cache is None else use_cache
        past, foreign = _past(past_key_values)
        length = 0 if past is None else past.get_seq_length()
        if attention_mask is not None and attention_mask.dim() == 2 and length:
            past = _checked(past, attention_mask, embeds)
            length = 0 if past is None else past.get_seq_length()
        mask = _mask(attention_mask, rows, length + new)
        positions = _positions(position_ids, cache_position, rows, length, new, embeds.device)

        refusal = self._refusal(attention_mask, positions, embeds, output_hidden_states, output_attentions)
        checkpoints = self.gradient_checkpointing and self.training
        keeps = keeps and not checkpoints
        before = None if past is None else past.part(length)
        hidden: list[torch.Tensor] | None = [] if output_hidden_states else None
        attentions: list[torch.Tensor] | None = [] if output_attentions else None
        held: Tokens | None = None
        made: Cache | None = None

        def fast(engine: Engine) -> tuple[torch.Tensor]:
            nonlocal held
            seen = torch.ones(rows, length + new, dtype=torch.bool) if mask is None else mask.cpu()
            read, held = engine.read(embeds, seen, positions.cpu(), past, keeps)
            return (read,)

        def slow(embeds: torch.Tensor) -> tuple[torch.Tensor]:
            nonlocal made
            made = Cache(() if before is None else before.pairs) if keeps or before is not None else None
            visible = mask
            if attention_mask is None or attention_mask.dim() == 2:
                visible = llama.visible_keys(mask, rows, length, new, embeds.device)
            x = llama.through_layers(
                *(self.layers, self.language, embeds, positions, visible, made),
                hidden=hidden,
                attentions=attentions,
                recompute=checkpoints,
            )
            normed: torch.Tensor = self.norm(x)
            if hidden is not None:
                hidden.append(normed)
            return (normed,)

        (last,) = self.core.run(self, fast, slow, (embeds,), refusal)
        own = foreign if isinstance(foreign, Cache) else Cache()
        foreign = None if isinstance(foreign, Cache) else foreign
        cache = own if past is None else past
        if held is not None:
            cache.hold(held, len(self.layers))
        elif made is not None:
            cache.replace(made.pairs)
        if foreign is not None and keeps:
            for layer, (k, v) in enumerate(cache.pairs):
                foreign.update(k[:, :, length:], v[:, :, length:], layer)
        output = Output(
            last_hidden_state=last,
            past_key_values=(cache if foreign is None else foreign) if keeps else None,
            hidden_states=None if hidden is None else tuple(hidden),
            attentions=None if attentions is None else tuple(attentions),
        )
        return output.to_tuple() if return_dict is False else output

    def _refusal(
        self,
        attention_mask: torch.Tensor | None,
        positions: torch.Tensor,
        embeds: torch.Tensor,
        hidden_states: bool | None,
        attentions: bool | None,
    ) -> str | None:
        """Why the engine cannot compute this call, or None."""
        if hidden_states or attentions:
            return f"the {'hidden states' if hidden_states else 'attentions'} of every layer are requested"
        if attention_mask is not None and attention_mask.dim() != 2:
            return "the attention mask has four dimensions; the engine takes one of (B, tokens) that hides tokens"
        if embeds.dtype is not self.norm.weight.dtype:
            return f"inputs_embeds are {embeds.dtype}, but the weights are {self.norm.weight.dtype}"
        limit = self.language.max_position_embeddings
        if int(positions.max()) >= limit:
            return f"position {int(positions.max())} is beyond the context of {limit} tokens"
        return None


@unit
class LlamaForCausalLM(GenerationMixin, nn.Module):
    """`model` with a head for logits (B, N, V), and `generate`."""

    model: LlamaModel
    lm_head: nn.Linear

    def __init__(self, config: JanusFlowConfig, shown: Config, core: Core) -> None:
        super().__init__()
        language = config.language
        self.config, self.core = shown, core
        self.generation_config = Config({})
        self.model = LlamaModel(config, shown, core)
        self.lm_head = nn.Linear(language.hidden_size, language.vocab_size, bias=False)
        if language.tie_word_embeddings:
            self.lm_head.weight = self.model.embed_tokens.weight

    @property
    def device(self) -> torch.device:
        return next(self.parameters()).device

    @property
    def dtype(self) -> torch.dtype:
        return next(self.parameters()).dtype

    def get_input_embeddings(self) -> nn.Module:
        return self.model.embed_tokens

    def set_input_embeddings(self, value: nn.Module) -> None:
        self.model.set_input_embeddings(value)

    def get_output_embeddings(self) -> nn.Module:
        return self.lm_head

    def get_decoder(self) -> nn.Module:
        return self.model

    def gradient_checkpointing_enable(self, gradient_checkpointing_kwargs: Any = None) -> None:
        """In training, recompute the layers in the backward pass instead of keeping their activations."""
        self.model.gradient_checkpointing = True

    def gradient_checkpointing_disable(self) -> None:
        self.model.gradient_checkpointing = False

    def enable_input_require_grads(self) -> None:
        """Make embeddings require gradients, which adapters on a frozen model need with gradient checkpointing."""
        self.model.embed_tokens.register_forward_hook(lambda module, args, output: output.requires_grad_(True))

    def forward(
        self,
        input_ids: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        position_ids: torch.Tensor | None = None,
        past_key_values: Any = None,
        inputs_embeds: torch.Tensor | None = None,
        labels: torch.Tensor | None = None,
        use_cache: bool | None = None,
        output_attentions: bool | None = None,
        output_hidden_states: bool | None = None,
        return_dict: bool | None = None,
        cache_position: torch.Tensor | None = None,
        num_logits_to_keep: int = 0,
        logits_to_keep: int = 0,
    ) -> Any:
        """Return Output(loss, logits (B, N, V), past_key_values, ...); the arguments of `model` are the same there.

        labels (B, N) are the token ids, with -100 where a token does not count; the loss is the mean cross entropy of
        predicting each next token. logits_to_keep: compute logits for this many last tokens only; 0 stands for all.
        """
        through = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=position_ids,
            past_key_values=past_key_values,
            inputs_embeds=inputs_embeds,
            use_cache=use_cache,
            output_attentions=output_attentions,
            output_hidden_states=output_hidden_states,
            cache_position=cache_position,
        )
        kept = logits_to_keep or num_logits_to_keep
        logits = self.lm_head(through.last_hidden_state[:, -kept:] if kept else through.last_hidden_state)
        loss = None
        if labels is not None:
            following = logits[:, :-1].flatten(0, 1).float()
            loss = F.cross_entropy(following, labels[:, 1:].flatten().to(following.device), ignore_index=-100)
        rest = {name: through[name] for name in through if name != "last_hidden_state"}
        output = Output(**{"loss": loss, "logits": logits, **_nothing(), **rest})
        return output.to_tuple() if return_dict is False else output

    def prepare_inputs_for_generation(
        self, input_ids: torch.Tensor, past_key_values: Any = None, inputs_embeds: Any = None, **kwargs: Any
    ) -> dict[str, Any]:
        """The arguments of the next call: the embeddings while nothing is cached, and later the last token alone."""
        first = inputs_embeds is not None and not past_key_values
        chosen = (
            dict(inputs_embeds=inputs_embeds)
            if first
            else dict(input_ids=input_ids[:, -1:] if past_key_values else input_ids)
        )
        return {**chosen, "past_key_values": past_key_values, **kwargs}


def _nothing() -> dict[str, None]:
    return dict.fromkeys(("past_key_values", "hidden_states", "attentions"))


def _past(given: Any) -> tuple[Cache | None, Any]:
    """The cache of the tokens read so far, or None if there are none; and another library's cache, which has to be
    updated as well."""
    if given is None or isinstance(given, (tuple, list)):
        return (Cache.from_legacy_cache(given), None) if given else (None, None)
    if isinstance(given, Cache):
        return given if given.get_seq_length() else None, None if given.get_seq_length() else given
    if not hasattr(given, "get_seq_length") or not hasattr(given, "update"):
        raise InputError(
            "past_key_values: expected None, a cache with get_seq_length and update, or (key, value) for each layer, "
            f"got {type(given).__name__}"
        )
    return (Cache(foreign_pairs(given)), given) if given.get_seq_length() else (None, given)


def _checked(past: Cache | None, mask: torch.Tensor, embeds: torch.Tensor) -> Cache | None:
    """`past`, or None if the call passes the whole sequence again."""
    assert past is not None
    length, new = past.get_seq_length(), embeds.shape[1]
    twice = (
        f"{new} embeddings follow {length} cached tokens, and they seem to be the whole sequence again: the model "
        "would see the prompt twice, at the wrong positions. After a cached prefix feed the new tokens "
        "alone, [t, z], with an attention_mask over prefix and new tokens and position_ids that continue after the "
        "prefix; or pass past_key_values=None, and the engine recognizes the prefix by itself."
    )
    if mask.shape[1] == new:
        warn(f"{twice} The cache is ignored.", CacheMisuseWarning)
        return None
    known = getattr(past.held, "embeds", None)
    if known is not None and new > length and torch.equal(known[:, :length].to(embeds.dtype), embeds[:, :length]):
        warn(f"{twice} The call is computed as it stands.", CacheMisuseWarning)
    return past


def _mask(given: torch.Tensor | None, rows: int, total: int) -> torch.Tensor | None:
    """A mask (B, past + N) or (B, 1, N, past + N) that is true where a token is seen; None if all tokens are."""
    if given is None:
        return None
    if given.dim() == 4:
        return given if given.dtype is torch.bool else given == 0
    if given.shape != (rows, total):
        raise InputError(
            f"attention_mask: expected ({rows}, {total}) over past and new tokens, got {list(given.shape)}"
        )
    mask = given.bool()
    return None if bool(mask.all()) else mask


def _positions(
    given: torch.Tensor | None,
    cache_position: torch.Tensor | None,
    rows: int,
    past: int,
    new: int,
    device: torch.device,
) -> torch.Tensor:
    if given is None:
        given = torch.arange(past, past + new, device=device) if cache_position is None else cache_position
    given = given if given.dim() == 2 else given[None]
    if given.shape[1] != new or given.shape[0] not in (1, rows):
        raise InputError(f"position_ids: expected ({rows}, {new}) or (1, {new}), got {list(given.shape)}")
    return given.expand(rows, new)
