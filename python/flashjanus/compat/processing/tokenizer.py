"""The tokenizer that scripts for the official code expect: a tag that is spelled in a text becomes its id.

Source: `LlamaTokenizerFast` as `VLChatProcessor` of deepseek-ai/Janus sets it up.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, overload

import tokenizers
import torch
from tokenizers import AddedToken

from flashjanus.compat.processing.outputs import DictOutput
from flashjanus.disk.reading import read_json
from flashjanus.disk.writing import write_text
from flashjanus.errors import ConfigError, InputError
from flashjanus.inputs.tokenizer import (
    BOS,
    EOS,
    check_text,
    declared_tokens,
    read_backend,
    token_text,
)

NO_LIMIT = int(1e30)
"""transformers' model_max_length if no file sets it."""
_BEFORE_PUNCTUATION = re.compile(r" (?=[.?!,]|n't|'m|'s|'ve|'re)")


class TokenIds(DictOutput):
    """input_ids and attention_mask, as lists or, with return_tensors="pt", as tensors (B, T)."""

    def __init__(self, input_ids: Any, attention_mask: Any) -> None:
        self.input_ids, self.attention_mask = input_ids, attention_mask

    def to(self, device: torch.device | str | int) -> TokenIds:
        """Move the tensors to a device. As in transformers, this changes and returns the same object."""
        self.input_ids, self.attention_mask = self.input_ids.to(device), self.attention_mask.to(device)
        return self


class ChatTokenizer:
    """A byte-level BPE tokenizer with the names of transformers' interface.

    bos_token, eos_token, and pad_token are strings or None; they and their ids may be assigned. `backend_tokenizer` is
    the `tokenizers.Tokenizer` itself, from which `transformers.PreTrainedTokenizerFast(tokenizer_object=...)` makes a
    tokenizer with the whole interface.
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        *,
        bos_token: str | None = BOS,
        eos_token: str | None = EOS,
        pad_token: str | None = None,
        add_bos_token: bool = True,
        model_max_length: int = NO_LIMIT,
        padding_side: str = "left",
    ) -> None:
        self.backend_tokenizer = backend
        self.bos_token, self.eos_token, self.pad_token = bos_token, eos_token, pad_token
        self.add_bos_token, self.model_max_length, self.padding_side = add_bos_token, model_max_length, padding_side
        self.clean_up_tokenization_spaces = False
        self._vocab: dict[str, int] | None = None
        backend.no_truncation()
        backend.no_padding()

    @classmethod
    def from_files(
        cls,
        tokenizer_json: str | Path,
        tokenizer_config: str | Path | None = None,
        special_tokens_map: str | Path | None = None,
    ) -> ChatTokenizer:
        """Load the tokenizer of a checkpoint's files; `None` stands for a file that the checkpoint does not have.

        Raises `CheckpointError` for a file that cannot be read, and `ConfigError` for one with invalid contents.
        """
        backend = read_backend(Path(tokenizer_json))
        config = {} if tokenizer_config is None else read_json(Path(tokenizer_config), ConfigError)
        special = {} if special_tokens_map is None else read_json(Path(special_tokens_map), ConfigError)
        if config.get("add_eos_token", False):
            raise ConfigError("tokenizer_config.json: add_eos_token = true would end every prompt; set it to false")
        for token in declared_tokens(config, special):
            if backend.token_to_id(token.content) is None:
                backend.add_tokens([token])
        names = {key: config.get(key) or special.get(key) for key in ("bos_token", "eos_token", "pad_token")}
        named: dict[str, Any] = {key: token_text(token) for key, token in names.items() if token}
        tokenizer = cls(backend, add_bos_token=bool(config.get("add_bos_token", True)), **named)
        limit = config.get("model_max_length")
        tokenizer.model_max_length = limit if type(limit) is int and limit > 0 else NO_LIMIT
        tokenizer.clean_up_tokenization_spaces = config.get("clean_up_tokenization_spaces") is True
        for name in ("bos_token", "eos_token"):
            if tokenizer.convert_tokens_to_ids(getattr(tokenizer, name)) is None:
                raise ConfigError(
                    f"{tokenizer_json}: its {name} {getattr(tokenizer, name)!r} is not in the vocabulary; name it in "
                    "tokenizer_config.json"
                )
        return tokenizer

    def save_pretrained(self, folder: str | Path) -> None:
        """Write tokenizer.json and tokenizer_config.json into an existing folder."""
        config = {
            "add_bos_token": self.add_bos_token,
            "add_eos_token": False,
            "bos_token": self.bos_token,
            "eos_token": self.eos_token,
            "pad_token": self.pad_token,
            "model_max_length": self.model_max_length,
            "clean_up_tokenization_spaces": self.clean_up_tokenization_spaces,
            "tokenizer_class": "LlamaTokenizerFast",
        }
        write_text(Path(folder, "tokenizer.json"), self.backend_tokenizer.to_str(pretty=True))
        write_text(Path(folder, "tokenizer_config.json"), json.dumps(config, indent=1, ensure_ascii=False))

    @property
    def vocab(self) -> dict[str, int]:
        """Maps every token, including added ones, to its id. The dict is made on first use and must not be changed."""
        if self._vocab is None:
            self._vocab = self.backend_tokenizer.get_vocab(with_added_tokens=True)
        return self._vocab

    def get_vocab(self) -> dict[str, int]:
        """A copy of `vocab`."""
        return dict(self.vocab)

    @property
    def vocab_size(self) -> int:
        """The number of tokens without added ones; `len()` includes those."""
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=False))

    def __len__(self) -> int:
        return int(self.backend_tokenizer.get_vocab_size(with_added_tokens=True))

    @property
    def bos_token_id(self) -> int | None:
        return self.convert_tokens_to_ids(self.bos_token)

    @bos_token_id.setter
    def bos_token_id(self, value: int | None) -> None:
        self.bos_token = self.convert_ids_to_tokens(value)

    @property
    def eos_token_id(self) -> int | None:
        return self.convert_tokens_to_ids(self.eos_token)

    @eos_token_id.setter
    def eos_token_id(self, value: int | None) -> None:
        self.eos_token = self.convert_ids_to_tokens(value)

    @property
    def pad_token_id(self) -> int | None:
        return self.convert_tokens_to_ids(self.pad_token)

    @pad_token_id.setter
    def pad_token_id(self, value: int | None) -> None:
        self.pad_token = self.convert_ids_to_tokens(value)

    @property
    def all_special_ids(self) -> list[int]:
        """The ids that `skip_special_tokens` leaves out, in order."""
        added = self.backend_tokenizer.get_added_tokens_decoder()
        return sorted(number for number, token in added.items() if token.special)

    @property
    def all_special_tokens(self) -> list[str]:
        return [str(self.backend_tokenizer.id_to_token(number)) for number in self.all_special_ids]

    def add_special_tokens(self, tokens: Mapping[str, str | Sequence[str]]) -> int:
        """Add the special tokens {"additional_special_tokens": [text, ...], "pad_token": text, ...}. A token keeps its
        id if it has one, and gets the next free one otherwise. Returns the number of new tokens."""
        before = len(self)
        for name, value in tokens.items():
            texts = [value] if isinstance(value, str) else list(value)
            added = [AddedToken(str(text), special=True, normalized=False) for text in texts]
            self.backend_tokenizer.add_special_tokens(added)
            if name in ("bos_token", "eos_token", "pad_token"):
                setattr(self, name, texts[0])
        self._vocab = None
        return len(self) - before

    @overload
    def convert_tokens_to_ids(self, tokens: str | None) -> int | None: ...
    @overload
    def convert_tokens_to_ids(self, tokens: list[str]) -> list[int | None]: ...
    def convert_tokens_to_ids(self, tokens: str | list[str] | None) -> int | list[int | None] | None:
        """The id of a token or of each in a list; None for a token that is not in the vocabulary."""
        if tokens is None or isinstance(tokens, str):
            return None if tokens is None else self.backend_tokenizer.token_to_id(tokens)
        return [self.backend_tokenizer.token_to_id(token) for token in tokens]

    @overload
    def convert_ids_to_tokens(self, ids: int | None) -> str | None: ...
    @overload
    def convert_ids_to_tokens(self, ids: list[int]) -> list[str | None]: ...
    def convert_ids_to_tokens(self, ids: int | list[int] | None) -> str | list[str | None] | None:
        """The token of an id or of each in a list; None for an id that is not in the vocabulary."""
        if ids is None or isinstance(ids, int):
            return None if ids is None else self.backend_tokenizer.id_to_token(ids)
        return [self.backend_tokenizer.id_to_token(int(number)) for number in ids]

    def tokenize(self, text: str, add_special_tokens: bool = False) -> list[str]:
        """The tokens of a text."""
        return [str(token) for token in self.convert_ids_to_tokens(self._ids(text, add_special_tokens))]

    @overload
    def encode(self, text: str, add_special_tokens: bool = True, return_tensors: None = None) -> list[int]: ...
    @overload
    def encode(self, text: str, add_special_tokens: bool = True, *, return_tensors: str) -> torch.Tensor: ...
    def encode(
        self, text: str, add_special_tokens: bool = True, return_tensors: str | None = None
    ) -> list[int] | torch.Tensor:
        """The ids of a text, with BOS first; a tensor (1, T) with return_tensors="pt".

        A tag that is spelled in the text, such as `<image_placeholder>`, becomes its id. For text from strangers, use
        `JanusFlow.chat`, where it stays text. Raises `InputError` if the argument is not a text.
        """
        ids = self._ids(text, add_special_tokens)
        return ids if return_tensors is None else _tensor([ids], return_tensors)

    def __call__(
        self,
        text: str | Sequence[str],
        add_special_tokens: bool = True,
        padding: bool | str = False,
        return_tensors: str | None = None,
    ) -> TokenIds:
        """input_ids and attention_mask of one text or several. padding=True pads to the longest, on `padding_side`."""
        texts = [text] if isinstance(text, str) else text
        rows = [self._ids(one, add_special_tokens) for one in texts]
        masks = [[1] * len(row) for row in rows]
        if padding not in (False, "do_not_pad"):
            if padding not in (True, "longest"):
                raise InputError(f"padding: expected True, 'longest' or False, got {padding!r}")
            if self.pad_token_id is None:
                raise InputError("padding: this tokenizer has no pad token; set tokenizer.pad_token")
            longest = max(map(len, rows), default=0)
            rows = [self._padded(row, longest, self.pad_token_id) for row in rows]
            masks = [self._padded(mask, longest, 0) for mask in masks]
        if return_tensors is not None:
            return TokenIds(_tensor(rows, return_tensors), _tensor(masks, return_tensors))
        return TokenIds(rows[0], masks[0]) if isinstance(text, str) else TokenIds(rows, masks)

    def decode(
        self,
        token_ids: int | Iterable[int] | torch.Tensor,
        skip_special_tokens: bool = False,
        clean_up_tokenization_spaces: bool | None = None,
    ) -> str:
        """The text of one row of ids, which may be a list, a tensor, an array, or one id."""
        ids = token_ids.tolist() if hasattr(token_ids, "tolist") else token_ids
        ids = [ids] if isinstance(ids, int) else list(ids)
        if any(not isinstance(number, int) for number in ids):
            raise InputError("token_ids: expected one row of ids; for several, use batch_decode")
        text = str(self.backend_tokenizer.decode(ids, skip_special_tokens=skip_special_tokens))
        if clean_up_tokenization_spaces is None:
            clean_up_tokenization_spaces = self.clean_up_tokenization_spaces
        return _BEFORE_PUNCTUATION.sub("", text) if clean_up_tokenization_spaces else text

    def batch_decode(self, sequences: Iterable[Any], skip_special_tokens: bool = False, **options: Any) -> list[str]:
        """The texts of several rows; see `decode`."""
        return [self.decode(row, skip_special_tokens, **options) for row in sequences]

    def _ids(self, text: str, add_special_tokens: bool) -> list[int]:
        check_text(text)
        ids: list[int] = self.backend_tokenizer.encode(text, add_special_tokens=False).ids
        bos = self.bos_token_id if add_special_tokens and self.add_bos_token else None
        return ids if bos is None else [bos, *ids]

    def _padded(self, row: list[int], length: int, filler: int) -> list[int]:
        more = [filler] * (length - len(row))
        return [*row, *more] if self.padding_side == "right" else [*more, *row]


def _tensor(rows: list[list[int]], kind: str) -> torch.Tensor:
    if kind != "pt":
        raise InputError(f"return_tensors: expected 'pt' or None, got {kind!r}")
    if len({len(row) for row in rows}) > 1:
        raise InputError("return_tensors: expected rows of one length; pass padding=True")
    return torch.tensor(rows, dtype=torch.long, device="cpu")
