"""Read images from files, from open files, and from URLs that need no network."""

from __future__ import annotations

import base64
import binascii
import io
import os
import re
import threading
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, Protocol, TypeAlias
from urllib.parse import unquote_to_bytes
from urllib.request import url2pathname

from PIL import Image

from flashjanus.errors import InputError
from flashjanus.inputs.decoding import decode

_SCHEME = re.compile(r"[a-z][a-z0-9+.-]+://", re.IGNORECASE)
_borrowed = threading.Lock()
"""Held while a caller's file is read, since all threads that share the file share its position."""


class Readable(Protocol):
    """A file open for reading in binary, such as BytesIO."""

    def read(self, size: int = -1, /) -> bytes: ...


Read: TypeAlias = Callable[[IO[bytes], str], Image.Image]
"""A function that reads the image in a seekable file. Its second argument names the file in errors."""


def from_text(source: str, read: Read = decode) -> Image.Image:
    """Image at a path, or in a data: or file: URL. Raises InputError, for URLs of the network too."""
    url = source.strip()
    scheme = url[:5].lower()
    if scheme == "data:":
        return from_data_url(url, read)
    if scheme == "file:":
        return from_path(_path_of(url), read)
    if _SCHEME.match(url):
        raise InputError(f"images are not fetched from the network; download {url:.80} and pass the file")
    return from_path(source, read)


def from_path(source: str | os.PathLike[str], read: Read = decode) -> Image.Image:
    """Image in a regular file. Raises InputError."""
    shown = repr(os.fspath(source))[:200]
    try:
        path = Path(source)
        if path.exists() and not path.is_file():  # a pipe would block, a device never end
            raise InputError(f"image {shown} is not a regular file")
        with path.open("rb") as file:
            return read(file, f"image {shown}")
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the image {shown}: {reason}") from error


def from_file(file: Readable) -> Image.Image:
    """RGB image in an open file. A seekable file is read from its start and keeps its position. Raises InputError."""
    shown = str(getattr(file, "name", type(file).__name__))[:200]
    try:
        data = file.getvalue() if isinstance(file, io.BytesIO) else _read(file)
    except (OSError, ValueError) as error:  # ValueError: it is closed, or its text is not UTF-8
        raise InputError(
            f"cannot read the image in the open file {shown}: {getattr(error, 'strerror', None) or error}"
        ) from error
    if not isinstance(data, bytes | bytearray | memoryview):
        raise InputError(f"expected a file opened in binary mode, 'rb', got {type(data).__name__} from {shown}")
    return decode(io.BytesIO(data), f"the image in the open file {shown}")


def from_data_url(url: str, read: Read = decode) -> Image.Image:
    """Image in data:[type][;base64],... Raises InputError."""
    head, comma, data = url.partition(",")
    if not comma:
        raise InputError(f"expected data:image/...;base64,..., got {url:.40}")
    if head.split(";")[-1].strip().lower() == "base64":
        return from_base64(data, "the data: URL", read)
    try:
        encoded = unquote_to_bytes(data)
    except ValueError as error:  # a lone surrogate
        raise InputError(f"the data: URL is not text: {error}") from error
    return read(io.BytesIO(encoded), "the image in the data: URL (percent-encoded, as it has no ;base64)")


def from_base64(data: str, name: str = "the image", read: Read = decode) -> Image.Image:
    """Image in base64 of either alphabet, also wrapped, percent-encoded or unpadded. Raises InputError."""
    try:
        text = b"".join(unquote_to_bytes(data).split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        encoded = base64.b64decode(text + b"=" * (-len(text) % 4), validate=True)
    except (binascii.Error, ValueError) as error:  # ValueError: a lone surrogate
        raise InputError(f"{name} does not hold base64: {error}") from error
    return read(io.BytesIO(encoded), f"the image in {name}" if name != "the image" else name)


def _path_of(url: str) -> str:
    """The path of file:///path, file://localhost/path or file:/path."""
    rest = url[len("file:") :]
    if rest.startswith("//"):
        host, slash, path = rest[2:].partition("/")
        if host.lower() not in ("", "localhost"):
            raise InputError(
                f"images are not fetched from the network; expected file:///path on this machine, got {url:.80}"
            )
        rest = slash + path
    if not rest.startswith("/"):
        raise InputError(f"expected file:///path with an absolute path, got {url:.80}")
    return url2pathname(rest)


def _read(file: Any) -> Any:
    with _borrowed:
        if not (hasattr(file, "seekable") and file.seekable()):
            return file.read()
        at = file.tell()
        file.seek(0)
        try:
            return file.read()
        finally:
            file.seek(at)
