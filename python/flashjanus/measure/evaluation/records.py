"""JSON from outside, read record by record: an error names the file, the line or item, and the key."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashjanus.checkpoint.fields import MAX_JSON_BYTES, show
from flashjanus.errors import InputError

_ABSENT = object()


@dataclass(frozen=True)
class Record:
    """A JSON object and where it stands, such as "prompts.jsonl: line 3"."""

    where: str
    data: Mapping[str, Any]

    def has(self, key: str) -> bool:
        return self.data.get(key) is not None

    def error(self, key: str, expected: str) -> InputError:
        value = self.data.get(key, _ABSENT)
        return InputError(f"{self.where}: '{key}': expected {expected}, got {_shown(value)}")

    def text(self, key: str) -> str:
        value = self.data.get(key)
        if not isinstance(value, str) or not value.strip() or any("\ud800" <= c <= "\udfff" for c in value):
            raise self.error(key, "a text that is not empty")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.data.get(key)
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, f"an integer from {low} to {high}")
        return value

    def records(self, key: str) -> list[Record]:
        """The objects of the list under `key`; none where it is absent."""
        values = self.data.get(key)
        if values is None:
            return []
        if not isinstance(values, list):
            raise self.error(key, "a list of objects")
        return [as_record(value, f"{self.where}: {key}[{i}]") for i, value in enumerate(values)]

    def path(self, key: str, folder: Path) -> Path:
        """The existing file that `key` names below `folder`; it may not lead out of it."""
        name = self.text(key)
        inside = "a path relative to the images' folder that does not leave it"
        try:
            path = (folder / name).resolve()
            if Path(name).is_absolute() or not path.is_relative_to(folder.resolve()):
                raise self.error(key, inside)
            if not path.is_file():
                raise InputError(f"{self.where}: '{key}': no such file in {folder}: {show(name)}")
        except (OSError, ValueError, RuntimeError) as error:  # NUL, too long, a loop of links
            if isinstance(error, InputError):
                raise
            raise self.error(key, inside) from error
        return path


def as_record(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, got {_shown(value)}")
    return Record(where, value)


def read_lines(path: Path) -> list[Record]:
    """The objects of a JSON-lines file, at least one; empty lines are skipped."""
    lines = enumerate(_text(path).split("\n"), 1)
    records = [as_record(_parsed(line, f"{path}: line {n}"), f"{path}: line {n}") for n, line in lines if line.strip()]
    if not records:
        raise InputError(f"{path}: expected one JSON object per line, got an empty file")
    return records


def read_document(path: Path) -> Any:
    """The JSON value in `path`; NaN, which pandas writes for absent cells, is None."""
    return _parsed(_text(path), str(path))


def _text(path: Path) -> str:
    try:
        if path.exists() and not path.is_file():  # a pipe would block, a device never end
            raise InputError(f"{path}: expected a regular file")
        size = path.stat().st_size
        if size > MAX_JSON_BYTES:
            raise InputError(f"{path}: {size} bytes; expected at most {MAX_JSON_BYTES}")
        return path.read_text(encoding="utf-8-sig")
    except OSError as error:
        raise InputError(f"{path}: cannot be read ({error.strerror})") from None
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: expected UTF-8, got a byte that is not at {error.start}") from None
    except ValueError as error:
        if isinstance(error, InputError):
            raise
        raise InputError(f"{str(path)!a}: is not a path ({error})") from None


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, parse_constant=lambda _: None, parse_float=_finite)
    except RecursionError:
        raise InputError(f"{where}: expected JSON, got JSON nested too deeply to parse") from None
    except ValueError as error:
        raise InputError(f"{where}: expected JSON, got something else ({error})") from None


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # 1e999, which could not be written again
        raise ValueError(f"number out of range: {text:.40}")
    return value


def _shown(value: object) -> str:
    return "nothing" if value is _ABSENT else show(value)
