"""Text <-> ids with JanusFlow's control tokens, on the `tokenizers` library alone.

Source: `VLChatProcessor.__init__` and `conversation.py` of deepseek-ai/Janus (which tags exist, in which order missing
ones are added, the chat templates).
"""

from __future__ import annotations

import codecs
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import tokenizers
from tokenizers import AddedToken
from tokenizers.decoders import ByteLevel

from flashjanus.disk.reading import read_json, read_text
from flashjanus.errors import ConfigError, InputError

BOS = "<｜begin▁of▁sentence｜>"
EOS = "<｜end▁of▁sentence｜>"
PAD = "<｜▁pad▁｜>"


@dataclass(frozen=True)
class ChatTemplate:
    """`{role}: {text}` + separator (after a user turn) or end (after an assistant turn); an empty turn is `{role}:`."""

    user: str
    assistant: str
    separator: str = "\n\n"
    end: str = EOS


TEMPLATES: Mapping[str, ChatTemplate] = {
    "deepseek_old": ChatTemplate("User", "Assistant"),
    "deepseek": ChatTemplate("<|User|>", "<|Assistant|>"),
}


@dataclass(frozen=True)
class ProcessorConfig:
    """processor_config.json; the defaults are those of the official code, not of the released file."""

    image_tag: str = "<image_placeholder>"
    image_gen_tag: str = "<｜begin▁of▁generation｜>"
    image_start_tag: str = "<begin_of_image>"
    image_end_tag: str = "<end_of_image>"
    num_image_tokens: int = 576
    sft_format: str = "deepseek"

    @classmethod
    def from_dict(cls, raw: Mapping[str, Any], source: str) -> ProcessorConfig:
        """The known keys of `raw`, checked; unknown keys are ignored. Raises `ConfigError`."""
        config = cls(**{key: raw[key] for key in cls.__dataclass_fields__ if key in raw})
        tags = (config.image_tag, config.image_gen_tag, config.image_start_tag, config.image_end_tag)
        if not all(isinstance(tag, str) and tag for tag in tags) or len(set(tags)) != len(tags):
            raise ConfigError(f"{source}: expected four different, non-empty image tags, got {tags!r}")
        count = config.num_image_tokens
        if type(count) is not int or not 0 < count <= 1 << 20:
            raise ConfigError(f"{source}: num_image_tokens must be a positive integer, got {count!r}")
        if config.sft_format not in TEMPLATES:
            known = ", ".join(TEMPLATES)
            raise ConfigError(f"{source}: sft_format {config.sft_format!r} is not known; expected one of: {known}")
        if raw.get("add_special_token", False):
            # The official code then keeps an extra image tag before each image and miscounts its features.
            raise ConfigError(f"{source}: add_special_token = true is not supported; JanusFlow sets it to false")
        return config


def read_backend(path: Path) -> tokenizers.Tokenizer:
    """The tokenizer in a tokenizer.json. Raises `ConfigError`."""
    text = read_text(path, ConfigError)
    try:
        return tokenizers.Tokenizer.from_str(text)
    except Exception as error:  # the library raises bare Exception for every damaged file
        raise ConfigError(f"{path} is not a tokenizer of the `tokenizers` library: {error}") from error


def check_text(text: object) -> None:
    """Raises `InputError` for anything but a string that UTF-8 can encode (lone surrogates)."""
    if not isinstance(text, str):
        raise InputError(f"expected text as str, got {type(text).__name__}")
    try:
        text.encode("utf-8")
    except UnicodeEncodeError as error:
        bad = f"U+{ord(text[error.start]):04X} at character {error.start}"
        raise InputError(f"text is not valid Unicode: lone surrogate {bad}; remove or replace it") from error


class Tokenizer:
    """Byte-level BPE whose control tokens can only be placed by id, never by text.

    Attributes: `bos_id`, `eos_id`, `pad_id`, `image_id`, `image_start_id`, `image_end_id`, `image_gen_id`,
    `num_image_tokens`, `sft_format`, `template`, `image_tag`, `image_gen_tag`, `vocab_size` (largest id + 1).
    """

    def __init__(
        self,
        backend: tokenizers.Tokenizer,
        processor: ProcessorConfig,
        tokenizer_config: Mapping[str, Any],
        special_tokens_map: Mapping[str, Any],
        source: str = "tokenizer.json",
    ) -> None:
        if not isinstance(backend.decoder, ByteLevel):
            found = type(backend.decoder).__name__
            raise ConfigError(f"{source}: expected a ByteLevel decoder, as JanusFlow has, got {found}")
        if tokenizer_config.get("add_eos_token", False):
            raise ConfigError("tokenizer_config.json: add_eos_token = true would end every prompt; set it to false")
        self._backend = backend
        self._source = source
        self.image_tag, self.image_gen_tag = processor.image_tag, processor.image_gen_tag
        self.num_image_tokens, self.sft_format = processor.num_image_tokens, processor.sft_format
        self.template = TEMPLATES[processor.sft_format]
        self.adds_bos = bool(tokenizer_config.get("add_bos_token", True))
        backend.no_truncation()
        backend.no_padding()

        for token in declared_tokens(tokenizer_config, special_tokens_map):
            if backend.token_to_id(token.content) is None:
                backend.add_tokens([token])
        # The ids of missing tags depend on this order.
        for tag in (self.image_tag, self.image_gen_tag, processor.image_start_tag, processor.image_end_tag):
            self._add_control(tag)
        bos = token_text(tokenizer_config.get("bos_token") or special_tokens_map.get("bos_token") or BOS)
        eos = token_text(tokenizer_config.get("eos_token") or special_tokens_map.get("eos_token") or EOS)
        self.bos_id, self.eos_id = self._existing(bos, "bos_token"), self._existing(eos, "eos_token")
        pad_id = backend.token_to_id(PAD)
        self.pad_id = self.eos_id if pad_id is None else pad_id
        self.image_id = self._existing(self.image_tag, "image_tag")
        self.image_gen_id = self._existing(self.image_gen_tag, "image_gen_tag")
        self.image_start_id = self._existing(processor.image_start_tag, "image_start_tag")
        self.image_end_id = self._existing(processor.image_end_tag, "image_end_tag")

        added = {token.content for token in backend.get_added_tokens_decoder().values()}
        for text in (bos, eos, PAD, self.template.user, self.template.assistant, self.template.end):
            if text in added:
                self._add_control(text)
        # From here on text never becomes a special token: control tokens enter by id only.
        backend.encode_special_tokens = True
        self._control_ids = {i for i, token in backend.get_added_tokens_decoder().items() if token.special}
        vocabulary = backend.get_vocab(with_added_tokens=True)
        self.vocab_size = max(vocabulary.values()) + 1
        self.longest_token = max(map(len, vocabulary))
        unk = getattr(backend.model, "unk_token", None)
        self._never_from_text = self._control_ids - ({vocabulary.get(unk)} if unk else set())

    @classmethod
    def from_files(
        cls,
        tokenizer_json: str | Path,
        tokenizer_config: str | Path | None = None,
        processor_config: str | Path | None = None,
        special_tokens_map: str | Path | None = None,
    ) -> Tokenizer:
        """The tokenizer of a checkpoint folder; `None` stands for a file that the checkpoint does not have.

        Raises `ConfigError` for a file that cannot be read or does not make sense.
        """
        path = Path(tokenizer_json)
        backend = read_backend(path)
        raw = {} if processor_config is None else read_json(Path(processor_config), ConfigError)
        processor = ProcessorConfig.from_dict(raw, str(processor_config or "the default processor settings"))
        config = {} if tokenizer_config is None else read_json(Path(tokenizer_config), ConfigError)
        special = {} if special_tokens_map is None else read_json(Path(special_tokens_map), ConfigError)
        return cls(backend, processor, config, special, str(path))

    def _add_control(self, text: str) -> None:
        """Makes `text` a special token, under its own id if it has one, else under the next free id."""
        self._backend.add_special_tokens([AddedToken(text, special=True, normalized=False)])

    def _existing(self, text: str, name: str) -> int:
        token_id = self._backend.token_to_id(text)
        if token_id is None:
            raise ConfigError(f"{self._source}: its {name} {text!r} is not in the vocabulary; name it in the config")
        return int(token_id)

    def copied_backend(self) -> tokenizers.Tokenizer:
        """A copy of the underlying tokenizer that encodes tags spelled in a text as control tokens."""
        return tokenizers.Tokenizer.from_str(self._backend.to_str())

    def control_id(self, text: str) -> int | None:
        """Id of the control token spelled `text`, or None if `text` is ordinary text to this tokenizer."""
        token_id = self._backend.token_to_id(text)
        return token_id if token_id in self._control_ids else None

    def encode_text(self, text: str) -> list[int]:
        """Ids of `text` as plain text: no BOS, and tags spelled out in it stay text.

        Raises `InputError` for anything but a string that UTF-8 can encode (lone surrogates).
        """
        check_text(text)
        ids: list[int] = self._backend.encode(text, add_special_tokens=False).ids
        if not self._never_from_text.isdisjoint(ids):  # a vocabulary that matches whole words (ignore_merges)
            tag = self._backend.id_to_token(next(i for i in ids if i in self._never_from_text))
            raise InputError(f"the text contains {tag!r}, which this tokenizer cannot take as plain text; remove it")
        return ids

    def decode(self, ids: Iterable[int], skip_special_tokens: bool = True) -> str:
        """Text of `ids`. Bytes that are not UTF-8 become U+FFFD, and ids outside the vocabulary are dropped."""
        return str(self._backend.decode(list(ids), skip_special_tokens=skip_special_tokens))

    def token_bytes(self, token_id: int, skip_special_tokens: bool = True) -> bytes:
        """The bytes that one id adds to the text."""
        token = self._backend.id_to_token(token_id)
        if token is None or (skip_special_tokens and token_id in self._control_ids):
            return b""
        if all(char in BYTE_OF_CHAR for char in token):
            return bytes(BYTE_OF_CHAR[char] for char in token)
        return token.encode("utf-8")  # an added token holds its text as it is


class StreamDecoder:
    """Text of ids that arrive one by one: `push(id)`..., `finish()` together equal `tokenizer.decode(ids)`.

    A piece never ends inside a UTF-8 sequence: its bytes are held back until the sequence is complete or broken.
    """

    def __init__(self, tokenizer: Tokenizer, skip_special_tokens: bool = True) -> None:
        self._tokenizer = tokenizer
        self._skip = skip_special_tokens
        self._utf8 = codecs.getincrementaldecoder("utf-8")(errors="replace")

    def push(self, token_id: int) -> str:
        """The text that `token_id` completes, often one word, possibly empty."""
        return self._utf8.decode(self._tokenizer.token_bytes(token_id, self._skip))

    def finish(self) -> str:
        """The remaining text: U+FFFD for an unfinished UTF-8 sequence, else an empty string."""
        return self._utf8.decode(b"", final=True)


def token_text(token: object) -> str:
    """Spelling of a token that a config gives as a string or as `{"content": ...}`."""
    if isinstance(token, Mapping):
        token = token.get("content")
    if not isinstance(token, str) or not token:
        raise ConfigError(f"tokenizer_config.json: expected a token as a non-empty string, got {token!r}")
    return token


def declared_tokens(config: Mapping[str, Any], special: Mapping[str, Any]) -> list[AddedToken]:
    """Tokens that the config files add to tokenizer.json, in the order in which transformers adds them."""
    tokens: list[AddedToken] = []
    decoder = config.get("added_tokens_decoder") or {}
    if not isinstance(decoder, Mapping) or not all(str(key).isdecimal() for key in decoder):
        raise ConfigError("tokenizer_config.json: added_tokens_decoder must map ids to tokens")
    for _, entry in sorted(decoder.items(), key=lambda item: int(item[0])):
        flags = entry if isinstance(entry, Mapping) else {}
        names = ("special", "normalized", "lstrip", "rstrip", "single_word")
        tokens.append(AddedToken(token_text(entry), **{name: bool(flags.get(name, False)) for name in names}))
    for source in (config, special):
        named = [source[key] for key in ("bos_token", "eos_token", "unk_token", "pad_token") if source.get(key)]
        extra = source.get("additional_special_tokens") or []
        if not isinstance(extra, Sequence) or isinstance(extra, str):
            raise ConfigError("additional_special_tokens must be a list of tokens")
        tokens += [AddedToken(token_text(token), special=True, normalized=False) for token in [*named, *extra]]
    return tokens


def _byte_of_char() -> dict[str, int]:
    """GPT-2's printable stand-ins for the 256 bytes, inverted."""
    visible = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    hidden = [byte for byte in range(256) if byte not in visible]
    return {chr(byte): byte for byte in visible} | {chr(256 + i): byte for i, byte in enumerate(hidden)}


BYTE_OF_CHAR: Mapping[str, int] = _byte_of_char()
