"""The options of `generate`, and the choice of a token by them, as in transformers, with torch's default generator."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields
from typing import Any

import torch

from flashjanus.errors import InputError

Processor = Callable[[torch.Tensor, torch.Tensor], torch.Tensor]
NEUTRAL: Mapping[str, tuple[Any, ...]] = {
    **dict.fromkeys(("num_beams", "num_beam_groups", "typical_p", "diversity_penalty", "length_penalty"), (None, 1, 0)),
    **dict.fromkeys(
        ("no_repeat_ngram_size", "encoder_no_repeat_ngram_size", "epsilon_cutoff", "eta_cutoff"), (None, 0)
    ),
    **dict.fromkeys(("penalty_alpha", "min_p", "top_h", "bad_words_ids", "force_words_ids", "constraints"), (None,)),
    **dict.fromkeys(("forced_bos_token_id", "forced_eos_token_id", "suppress_tokens", "guidance_scale"), (None,)),
    **dict.fromkeys(("begin_suppress_tokens", "sequence_bias", "watermarking_config", "stop_strings"), (None,)),
    **dict.fromkeys(("dola_layers", "prompt_lookup_num_tokens", "assistant_model", "negative_prompt_ids"), (None,)),
    **dict.fromkeys(("exponential_decay_length_penalty", "custom_generate", "prefix_allowed_tokens_fn"), (None,)),
    **dict.fromkeys(("output_hidden_states", "output_attentions"), (None, False)),
}
"""Options of transformers that are not supported, with the values that have no effect."""
IGNORED = frozenset(
    {"use_cache", "cache_implementation", "cache_config", "synced_gpus", "early_stopping", "bos_token_id", "max_length"}
    | {
        "tokenizer",
        "return_legacy_cache",
        "disable_compile",
        "compile_config",
        "max_time",
        "min_length",
        "remove_invalid_values",
    }
    | {
        "low_memory",
        "renormalize_logits",
        "decoder_start_token_id",
        "is_assistant",
        "transformers_version",
        "trust_remote_code",
    }
)
"""Options that have no effect here."""


@dataclass
class Options:
    """The options of one call. top_k defaults to 50, as in transformers."""

    max_new_tokens: int | None = None
    min_new_tokens: int | None = None
    do_sample: bool = False
    temperature: float | None = None
    top_k: int | None = None
    top_p: float | None = None
    repetition_penalty: float | None = None
    pad_token_id: int | None = None
    eos_token_id: int | Sequence[int] | None = None
    num_return_sequences: int | None = None
    return_dict_in_generate: bool = False
    output_scores: bool = False
    output_logits: bool = False

    @classmethod
    def of(cls, config: Any, given: Mapping[str, Any]) -> Options:
        """Read the options of a GenerationConfig or a mapping, which the arguments by name override. Raises
        InputError."""
        configured = {} if config is None else config if isinstance(config, Mapping) else config.to_dict()
        known = {one.name for one in fields(cls)}
        for name in given:
            if name not in known and name not in NEUTRAL and name not in IGNORED:
                raise InputError(f"{name}: unknown option, generate takes {', '.join(sorted(known))}")
        both = {**{k: v for k, v in configured.items() if v is not None}, **given}
        for name, value in both.items():
            if name in NEUTRAL and value not in NEUTRAL[name] and value not in ([], ()):
                raise InputError(
                    f"{name}: not supported, got {value!r:.80}; leave it out, and pass functions that do the same as "
                    "logits_processor or stopping_criteria"
                )
        if both.get("max_new_tokens") is None and both.get("max_length") is not None and "max_length" in given:
            both["max_new_tokens"] = both["max_length"]
        options = cls(**{name: both[name] for name in known if both.get(name) is not None})
        options.check()
        return options

    def check(self) -> None:
        if self.max_new_tokens is None:
            self.max_new_tokens = 20
        if type(self.max_new_tokens) is not int or self.max_new_tokens < 1:
            raise InputError(f"max_new_tokens: expected an integer of at least 1, got {self.max_new_tokens!r}")
        if self.do_sample and self.temperature is not None and not self.temperature > 0:
            raise InputError(
                f"temperature: expected more than 0 with do_sample, got {self.temperature!r}; do_sample=False is greedy"
            )
        if self.top_p is not None and not 0 <= self.top_p <= 1:
            raise InputError(f"top_p: expected 0 to 1, got {self.top_p!r}")
        if self.repetition_penalty is not None and not self.repetition_penalty > 0:
            raise InputError(f"repetition_penalty: expected more than 0, got {self.repetition_penalty!r}")

    @property
    def ends(self) -> list[int]:
        """The token ids that end a row."""
        eos = self.eos_token_id
        if eos is None:
            return []
        if isinstance(eos, torch.Tensor):
            eos = eos.flatten().tolist()
        return [eos] if isinstance(eos, int) else list(eos)

    def scores(
        self, logits: torch.Tensor, ids: torch.Tensor, written: int, processors: Sequence[Processor]
    ) -> torch.Tensor:
        """Apply the options and processors to logits (B, V) after ids (B, T), of which `written` are new."""
        scores = logits.clone()
        if self.repetition_penalty not in (None, 1.0) and ids.shape[1]:
            assert self.repetition_penalty is not None
            found = scores.gather(1, ids)
            found = torch.where(found < 0, found * self.repetition_penalty, found / self.repetition_penalty)
            scores.scatter_(1, ids, found)
        if self.min_new_tokens and written < self.min_new_tokens and self.ends:
            scores[:, self.ends] = -torch.inf
        for process in processors:
            scores = process(ids, scores)
        return self._warped(scores) if self.do_sample else scores

    def _warped(self, scores: torch.Tensor) -> torch.Tensor:
        scores = scores / (1.0 if self.temperature is None else self.temperature)
        top_k = 50 if self.top_k is None else self.top_k
        if 0 < top_k < scores.shape[1]:
            least = scores.topk(top_k, dim=1).values[:, -1:]
            scores = scores.masked_fill(scores < least, -torch.inf)
        if self.top_p is not None and self.top_p < 1:
            ordered, order = scores.sort(dim=1)
            dropped = ordered.softmax(1).cumsum(1) <= 1 - self.top_p
            dropped[:, -1] = False
            scores = scores.masked_fill(dropped.scatter(1, order, dropped), -torch.inf)
        return scores

    def choose(self, scores: torch.Tensor) -> torch.Tensor:
        """Choose a token (B,) in each row of scores (B, V)."""
        if self.do_sample:
            return torch.multinomial(scores.softmax(1), 1)[:, 0]
        return scores.argmax(1)
