"""Reads JSON from outside record by record; an error names the file, the line or item, and the key."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from flashjanus.disk.reading import parse, parse_object, read_lines, read_text, show
from flashjanus.errors import InputError

_ABSENT = object()


@dataclass(frozen=True)
class Record:
    """A JSON object and its place, such as "prompts.jsonl: line 3"."""

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
            raise self.error(key, "a string that is not empty")
        return value

    def integer(self, key: str, low: int, high: int) -> int:
        value = self.data.get(key)
        if type(value) is not int or not low <= value <= high:
            raise self.error(key, f"an integer from {low} to {high}")
        return value

    def records(self, key: str) -> list[Record]:
        """The objects of the list under `key`; none if the list is absent."""
        values = self.data.get(key)
        if values is None:
            return []
        if not isinstance(values, list):
            raise self.error(key, "a list of objects")
        return [as_record(value, f"{self.where}: {key}[{i}]") for i, value in enumerate(values)]

    def path(self, key: str, folder: Path) -> Path:
        """The existing file in `folder` that `key` names. The name may not lead out of the folder."""
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


def read_records(path: Path) -> list[Record]:
    """The objects of a JSON-lines file, which must have at least one."""
    records = [Record(where, parse_object(line, where, constant=_absent)) for where, line in read_lines(path)]
    if not records:
        raise InputError(f"{path}: expected one JSON object per line, got none")
    return records


def as_record(value: object, where: str) -> Record:
    if not isinstance(value, dict):
        raise InputError(f"{where}: expected an object, got {show(value)}")
    return Record(where, value)


def read_document(path: Path) -> Any:
    """The JSON value in `path`."""
    return parse(read_text(path), str(path), constant=_absent)


def _absent(constant: str) -> None:
    """Read NaN, which pandas writes for absent cells, as None."""


def _shown(value: object) -> str:
    return "nothing" if value is _ABSENT else show(value)
