"""Reads the lines of a batch: each asks for images of a prompt, or for an answer to a question about images."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flashjanus.disk.reading import parse_object, refused, show
from flashjanus.errors import InputError
from flashjanus.sampling.fields import options_of
from flashjanus.sampling.options import ImageOptions, TokenOptions
from flashjanus.serving.messages import ChatRequest, ImageRequest, Request
from flashjanus.serving.orders import checked

LONGEST_ID = 200
LONGEST_LINE = 16 * 2**20
"""The longest line in bytes: enough for a data: URL of a large photograph."""
KINDS: Mapping[str, type[Any]] = {"image": ImageOptions, "answer": TokenOptions}


@dataclass(frozen=True)
class Row:
    """A line of a batch. kind: "image" or "answer". text: the prompt or the question. images: paths or data: URLs
    that a question is about. options: those that differ from the default, and the seed. digest: a hash of everything
    on which the result depends."""

    line: int
    id: str
    kind: str
    text: str
    images: tuple[str, ...]
    options: Mapping[str, Any]
    digest: str

    @property
    def stem(self) -> str:
        return stem(self.id)


@dataclass(frozen=True)
class Fault:
    """A row that has no result, with the reason. id: None if the line has none."""

    line: int
    id: str | None
    error: str
    message: str

    @classmethod
    def of(cls, row: Row, error: BaseException) -> Fault:
        return cls(row.line, row.id, type(error).__name__, str(error))


@dataclass(frozen=True)
class Usual:
    """Defaults for rows: options by kind, and the seed from which a row's own seed is derived together with its id.

    model: what the results depend on besides the row, as plain data. adapters: what tells each adapter that rows may
    name from others, by name.
    """

    options: Mapping[str, Mapping[str, Any]]
    seed: int
    model: Mapping[str, Any]
    adapters: Mapping[str, str] = field(default_factory=dict)


def read(path: Path, usual: Usual) -> Iterator[Row | Fault]:
    """Read each line that is not empty, in order. Raises InputError if the file cannot be read or has no lines."""
    seen: dict[str, int] = {}
    line = 0
    for line, text in _lines(path):
        given: dict[str, Any] = {}
        try:
            given = _parsed(text)
            row = _row(line, given, usual)
            if row.id in seen:
                raise InputError(
                    f"id: expected one that no other line has, got {show(row.id)}, the id of line {seen[row.id]}"
                )
        except InputError as error:
            name = given.get("id")
            yield Fault(line, str(name) if isinstance(name, str | int) else None, "InputError", str(error))
        else:
            seen[row.id] = line
            yield row
    if not line:
        raise InputError(f"{path}: expected one JSON object per line, got an empty file")


def request(row: Row, folder: Path) -> Request:
    """Make the request of a row for the engine. folder: the folder to which image paths are relative. Raises
    InputError for images that cannot be read."""
    if row.kind == "image":
        return ImageRequest(prompt=row.text, options=row.options, steps=False)
    content: list[dict[str, Any]] = [{"type": "image", "image": contents(name, folder)} for name in row.images]
    messages = [{"role": "user", "content": [*content, {"type": "text", "text": row.text}]}]
    return ChatRequest(messages=messages, options=row.options)


def contents(name: str, folder: Path) -> str | bytes:
    """The contents of an image file; a data: URL is returned as it is."""
    if name.startswith("data:"):
        return name
    path = folder / name
    try:
        if path.exists() and not path.is_file():  # reading a pipe would block, and a device never ends
            raise InputError(f"image: expected a regular file, got {show(name)}")
        return path.read_bytes()
    except (OSError, ValueError) as error:  # ValueError: a NUL in the path
        if isinstance(error, InputError):
            raise
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"image: cannot read {show(name)} in {folder}: {reason}") from error


def stem(id: str) -> str:
    """A file name without suffix that is unique to this id: the id itself if it is a lowercase ASCII word, otherwise
    one with a hash."""
    plain = "".join(c if c.isascii() and (c.isalnum() or c in "_-") else "-" for c in id)[:80]
    # file systems may not distinguish uppercase from lowercase
    return plain if plain == id.lower() else f"{plain}.{hashlib.sha256(id.encode()).hexdigest()[:12]}"


def derived_seed(seed: int, id: str) -> int:
    """The seed of a row that gives none. It is the same in every run and on every machine, and exact in every JSON
    reader."""
    return int.from_bytes(hashlib.sha256(f"{seed} {id}".encode()).digest()[:8], "big") >> 11


def _lines(path: Path) -> Iterator[tuple[int, bytes]]:
    try:
        if path.exists() and not path.is_file():
            raise InputError(f"{path}: expected a regular file, which a second run can read again")
        with path.open("rb") as file:
            number = 0
            while line := file.readline(LONGEST_LINE + 1):
                number += 1
                whole = line
                while len(line) > LONGEST_LINE and not line.endswith(b"\n"):
                    line = file.readline(LONGEST_LINE + 1)  # discard the rest of the line
                text = whole.removeprefix(b"\xef\xbb\xbf") if number == 1 else whole
                if text.strip():
                    yield number, text
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from error


def _parsed(line: bytes) -> dict[str, Any]:
    if len(line) > LONGEST_LINE:
        raise InputError(f"expected at most {LONGEST_LINE} bytes per line, got more")
    return parse_object(line, constant=refused)


def _row(line: int, given: Mapping[str, Any], usual: Usual) -> Row:
    asked = [name for name in ("prompt", "question") if name in given]
    if len(asked) != 1:
        raise InputError(f"expected either 'prompt' or 'question', got {' and '.join(asked) or 'neither'}")
    kind = "image" if asked == ["prompt"] else "answer"
    id = _id(given.get("id"), line)
    text, images = _text(asked[0], given[asked[0]]), _images(given) if kind == "answer" else ()
    own = {"id", *asked, *(("image", "images") if kind == "answer" else ())}
    options = {**usual.options[kind], **{name: value for name, value in given.items() if name not in own}}
    options = _other_than_default(kind, options, text)
    options.setdefault("seed", derived_seed(usual.seed, id))
    whole = dict(kind=kind, text=text, images=images, options=options, model=usual.model, **_adapter(options, usual))
    digest = hashlib.sha256(json.dumps(whole, sort_keys=True).encode()).hexdigest()
    return Row(line, id, kind, text, images, options, digest)


def _adapter(options: Mapping[str, Any], usual: Usual) -> dict[str, str]:
    """What the result of a row with an adapter depends on; empty without one."""
    name = options.get("adapter")
    if name is None:
        return {}
    if name not in usual.adapters:
        known = ", ".join(map(repr, usual.adapters)) or "none"
        raise InputError(f"adapter: expected one that --adapter loads ({known}), got {show(name)}")
    return {"adapter": usual.adapters[name]}


def _other_than_default(kind: str, given: Mapping[str, Any], text: str) -> dict[str, Any]:
    options = checked(KINDS[kind], given)
    found = {name: getattr(options, name) for name in given}
    defaults = {name: one.default for name, one in options_of(KINDS[kind]).items()}
    return {name: value for name, value in found.items() if value != defaults[name]}


def _id(value: Any, line: int) -> str:
    if value is None:
        return f"{line:06}"
    if isinstance(value, int) and not isinstance(value, bool):
        return str(value)
    if not isinstance(value, str) or not value or len(value) > LONGEST_ID or not value.isprintable():
        raise InputError(f"id: expected 1 to {LONGEST_ID} printable characters or an integer, got {show(value)}")
    return value


def _text(name: str, value: Any) -> str:
    if not isinstance(value, str) or not value.strip() or any("\ud800" <= c <= "\udfff" for c in value):
        raise InputError(f"{name}: expected a string that is not empty, got {show(value)}")
    return value


def _images(given: Mapping[str, Any]) -> tuple[str, ...]:
    if "image" in given and "images" in given:
        raise InputError("image: expected either 'image' or 'images', got both")
    value = given.get("images", given.get("image", []))
    found = [value] if isinstance(value, str) else value
    if not isinstance(found, list) or not all(isinstance(one, str) and one for one in found):
        raise InputError(f"images: expected the path of an image, or a list of paths, got {show(value)}")
    return tuple(found)
