"""Typed reading of JSON objects from outside: every bad value is noted and reported together.

Unknown keys are ignored, since the official configs contain several that nothing reads.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from flashjanus.disk.reading import show
from flashjanus.errors import ConfigError

MAX_NUMBER = 1e30


_VALUE = object()


class Fields:
    """One JSON object being read. Bad values become lines in `problems`, shared by all sections of a file."""

    def __init__(self, data: Mapping[str, Any], where: str, problems: list[str]):
        self.data = data
        self.where = where
        self.problems = problems

    def name(self, key: str) -> str:
        return f"{self.where}.{key}" if self.where else key

    def bad(self, key: str, expected: str, *, got: object = _VALUE) -> None:
        """Record a problem. `got` overrides the file's value in the message, for example with a default."""
        if got is _VALUE:
            got = self.data.get(key, _VALUE)
        text = "nothing" if got is _VALUE else show(got)
        self.problems.append(f"{self.name(key)}: expected {expected}, got {text}")

    def given(self, key: str) -> bool:
        return self.data.get(key) is not None

    def section(self, key: str, *, default: Mapping[str, Any] | None = None) -> Fields:
        """The object under `key`. A missing one is a problem unless there is a `default`."""
        value = self.data.get(key, default)
        if not isinstance(value, Mapping):
            self.bad(key, "an object")
            value = {}
        return Fields(value, self.name(key), self.problems)

    def size(self, key: str, default: int, most: int, *, least: int = 1, nullable: bool = False) -> int:
        """An integer in least..most."""
        value = self.data.get(key, default)
        if value is None and nullable:
            return default
        if isinstance(value, bool) or not isinstance(value, int) or not least <= value <= most:
            self.bad(key, f"an integer in {least}..{most}")
            return default
        return value

    def number(self, key: str, default: float) -> float:
        """A finite number above zero."""
        value = self.data.get(key, default)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        if not is_number or not 0 < value <= MAX_NUMBER:
            self.bad(key, "a finite number above 0")
            return default
        return float(value)

    def flag(self, key: str, default: bool) -> bool:
        value = self.data.get(key, default)
        if not isinstance(value, bool):
            self.bad(key, "true or false")
            return default
        return value

    def choice(self, key: str, default: str, choices: Sequence[str]) -> str:
        value = self.data.get(key, default)
        if value not in choices:
            self.bad(key, " or ".join(show(choice) for choice in choices))
            return default
        return str(value)

    def sizes(self, key: str, default: tuple[int, ...], most: int) -> tuple[int, ...]:
        """A non-empty list of integers in 1..most."""
        value = self.data.get(key, default)
        if not isinstance(value, (list, tuple)) or not 1 <= len(value) <= 64:
            self.bad(key, "a list of 1 to 64 sizes")
            return default
        if any(isinstance(item, bool) or not isinstance(item, int) or not 1 <= item <= most for item in value):
            self.bad(key, f"a list of integers in 1..{most}")
            return default
        return tuple(value)

    def refuse_unless(self, key: str, accepted: Sequence[object], reason: str) -> None:
        """Record a problem if `key` asks for a computation that this package does not support."""
        value = self.data.get(key)
        if value is not None and not any(type(value) is type(item) and value == item for item in accepted):
            expected = " or ".join(show(item) for item in accepted if item is not None) or "null"
            self.bad(key, f"{expected} ({reason})")


def raise_problems(title: str, problems: Sequence[str]) -> None:
    """Raise ConfigError with one line per problem, if there are any."""
    if problems:
        raise ConfigError("\n  ".join([f"{title}: {len(problems)} bad value{'s' * (len(problems) > 1)}", *problems]))
