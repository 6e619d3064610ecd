"""Text and JSON from outside: every cause has its own words, and the caller names the type of the error."""

from __future__ import annotations

import json
import math
import stat
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

from flashjanus.disk.paths import HEAD_BYTES, stand_in, why_unreadable
from flashjanus.errors import FlashJanusError, InputError

Raises = type[FlashJanusError]
MAX_BYTES = 256 * 2**20


def read_text(path: Path, error: Raises = InputError) -> str:
    """UTF-8 without a byte order mark. Raises `error`."""
    try:
        found = path.stat()
        if not stat.S_ISREG(found.st_mode):  # a pipe would block, a device never end
            raise error(f"{path}: expected a regular file")
        if found.st_size > MAX_BYTES:
            raise error(f"{path}: {found.st_size} bytes, expected at most {MAX_BYTES} for a file of this kind")
        content = path.read_bytes()
        cause = stand_in(content[:HEAD_BYTES])
        if cause is not None:
            raise error(f"{path}: {cause}")
        return content.decode("utf-8-sig")
    except FlashJanusError:
        raise
    except OSError as caught:
        raise error(why_unreadable(path, caught)) from None
    except UnicodeDecodeError as caught:
        raise error(f"{path}: expected UTF-8, got an invalid byte at {caught.start}") from None
    except ValueError as caught:  # a NUL, which no name has
        raise error(f"{str(path)!a}: expected a path ({caught})") from None


def read_json(path: Path, error: Raises = InputError) -> dict[str, Any]:
    """The JSON object in `path`. Raises `error`."""
    return parse_object(read_text(path, error), str(path), error)


def read_lines(path: Path, error: Raises = InputError) -> Iterator[tuple[str, str]]:
    """Where a line stands, and the line; empty ones are left out. Raises `error`."""
    for number, line in enumerate(read_text(path, error).split("\n"), 1):
        if line.strip():
            yield f"{path}: line {number}", line


def parse(
    text: str | bytes,
    where: str = "",
    error: Raises = InputError,
    *,
    constant: Callable[[str], object] = float,
    expected: str = "JSON",
) -> Any:
    """The value that `text` spells. constant: what NaN and Infinity, which JSON does not have, stand for."""
    expected = f"{where}: expected {expected}" if where else f"expected {expected}"
    try:
        text = text if isinstance(text, str) else text.decode()
        return json.loads(text, parse_constant=constant, parse_float=_finite)
    except RecursionError:
        raise error(f"{expected}, got JSON nested too deeply to parse") from None
    except ValueError as caught:  # UnicodeDecodeError too
        raise error(f"{expected}, got text that is not JSON ({caught})") from None


def parse_object(
    text: str | bytes, where: str = "", error: Raises = InputError, *, constant: Callable[[str], object] = float
) -> dict[str, Any]:
    """`parse` of an object."""
    value = parse(text, where, error, constant=constant, expected="a JSON object")
    if not isinstance(value, dict):
        raise error(f"{where}{where and ': '}expected a JSON object, got {show(value)}")
    return value


def refused(constant: str) -> float:
    """For `parse`, where the value is written again."""
    raise ValueError(f"{constant} is not a JSON number")


def show(value: object) -> str:
    """`value` for an error message: JSON's spelling for scalars, printable, shortened."""
    if value is None or isinstance(value, (bool, str)):
        text = json.dumps(value)
    elif isinstance(value, int) and value.bit_length() > 256:
        text = f"an integer of {value.bit_length()} bits"
    else:
        text = ascii(value)
    return text if len(text) <= 80 else f"{text[:77]}..."


def _finite(text: str) -> float:
    value = float(text)
    if not math.isfinite(value):  # 1e999, which could not be written again
        raise ValueError(f"number out of range: {text:.40}")
    return value
