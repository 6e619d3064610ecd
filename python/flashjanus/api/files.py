"""Files that are there whole or not at all; a name that must be free is claimed, not looked at first."""

from __future__ import annotations

import contextlib
import errno
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from itertools import chain
from pathlib import Path
from typing import IO, TYPE_CHECKING

from flashjanus.errors import InputError, OutputError

if TYPE_CHECKING:
    import torch
    from PIL import Image

Writer = Callable[[IO[bytes]], object]
NO_HARD_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems without them say, FAT and some network ones."""


def check_writable(path: str) -> None:
    """OutputError where a file cannot be put there, or where what is there is no file: before the long work starts."""
    with _told(path):
        target = Path(os.path.realpath(path))
        if not path or not os.access(target.parent, os.W_OK) or (target.exists() and not target.is_file()):
            raise OutputError(f"cannot write {path!r}: expected the name of a file in an existing folder to write to")


def write_file(path: str | os.PathLike[str], write: Writer) -> None:
    """Puts what `write` writes in the place of `path`, or of the file that it links to. Raises OutputError."""
    with _told(path):
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():  # os.replace would put a file in the place of a device
            raise OutputError(f"cannot write {os.fspath(path)}: it exists and is not a regular file")
        with _written_beside(target, write) as whole:
            os.replace(whole, target)


def write_new_file(names: Iterable[Path], write: Writer) -> Path:
    """Puts what `write` writes under the first of these names in one folder that is free, and returns it.

    Of several processes that ask for one name at once, one gets it; a link that leads nowhere has its name as well.
    Raises OutputError, also where all are taken.
    """
    names = iter(names)
    first = next(names)
    with _told(first), _written_beside(first, write) as whole:
        for name in chain([first], names):
            if _claim(whole, name):
                return name
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def write_text(path: str | os.PathLike[str], text: str) -> None:
    """`write_file` of UTF-8."""
    write_file(path, lambda file: file.write(text.encode("utf-8")))


def save_png(
    image: Image.Image | torch.Tensor, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `path` whole or not at all; `metadata` becomes PNG text (tEXt, or iTXt beyond Latin-1).

    `image`: PIL, or a tensor as in `to_pil`. Raises `OutputError` if the file cannot be written, `InputError` for
    metadata that PNG cannot hold.
    """
    write_file(path, png(image, metadata))


def save_new_png(
    image: Image.Image | torch.Tensor, names: Iterable[Path], metadata: Mapping[str, str] | None = None
) -> Path:
    """`save_png` under the first of these names that is free, as in `write_new_file`."""
    return write_new_file(names, png(image, metadata))


def png(image: Image.Image | torch.Tensor, metadata: Mapping[str, str] | None) -> Writer:
    """What writes an image to a file, as `save_png` does. Raises InputError for metadata that PNG cannot hold."""
    from PIL import Image
    from PIL.PngImagePlugin import PngInfo

    text = PngInfo()
    for key, value in (metadata or {}).items():
        try:
            if not (1 <= len(key.encode("latin-1")) <= 79) or "\0" in key + value:
                raise ValueError("keys are 1 to 79 Latin-1 characters, NUL is not allowed")
            text.add_text(key, value)
        except ValueError as error:  # includes UnicodeEncodeError
            raise InputError(f"PNG text {key!r:.80} cannot be written: {error}") from error
    if not isinstance(image, Image.Image):  # torch is there already, and else it need not be
        from flashjanus.inputs.images import to_pil

        image = to_pil(image)
    return partial(image.save, format="PNG", pnginfo=text)


@contextlib.contextmanager
def _told(path: str | os.PathLike[str]) -> Iterator[None]:
    """OutputError for what the system refuses."""
    try:
        yield
    except OutputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the path
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {os.fspath(path)[:200]!r}: {reason}") from error


@contextlib.contextmanager
def _written_beside(target: Path, write: Writer) -> Iterator[Path]:
    """A file in the target's folder that holds it all, and is gone afterward unless it was given the target's name."""
    path = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        with open(path, "xb") as file:
            write(file)
        yield path
    finally:
        with contextlib.suppress(OSError, ValueError):
            path.unlink()


def _claim(whole: Path, name: Path) -> bool:
    """Give a whole file this name, unless something has it already."""
    try:
        os.link(whole, name)
        return True
    except FileExistsError:
        return False
    except OSError as error:
        if error.errno not in NO_HARD_LINKS:
            raise
    try:
        os.close(os.open(name, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    except FileExistsError:
        return False
    try:
        os.replace(whole, name)
    except BaseException:
        name.unlink()
        raise
    return True
