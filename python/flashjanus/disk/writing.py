"""Files and folders that are there whole or not at all; a name that must be free is claimed, not looked at first."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import chain
from pathlib import Path
from typing import IO

from flashjanus.errors import FlashJanusError, OutputError

Writer = Callable[[IO[bytes]], object]
AnyPath = str | os.PathLike[str]
NO_HARD_LINKS = (errno.EPERM, errno.EACCES, errno.ENOTSUP, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK)
"""What file systems without them say, FAT and some network ones."""


def check_writable(path: str) -> None:
    """OutputError where a file cannot be put there, or where what is there is no file: before the long work starts."""
    with _told(path):
        target = Path(os.path.realpath(path))
        if not path or not os.access(target.parent, os.W_OK) or (target.exists() and not target.is_file()):
            raise OutputError(
                f"cannot write {path!r}: expected the name of a file in an existing folder that you may write to"
            )


@contextmanager
def whole(path: AnyPath, *, durable: bool = False) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path`, or of the file that it links to, when the block has ended. OutputError.

    durable: not before its contents are on the disk, so that a machine that stops leaves no half of it either.
    """
    with _told(path):
        target = Path(os.path.realpath(path))
        if target.exists() and not target.is_file():  # os.replace would put a file in the place of a device
            raise OutputError(f"cannot write {os.fspath(path)}: it exists and is not a regular file")
        with _beside(target) as partial:
            with open(partial, "xb") as file:
                yield file
                if durable:
                    file.flush()
                    os.fsync(file.fileno())
            os.replace(partial, target)


def write_text(path: AnyPath, text: str, *, durable: bool = False) -> None:
    """UTF-8, as in `whole`."""
    with whole(path, durable=durable) as file:
        file.write(text.encode("utf-8"))


def write_json(path: AnyPath, value: object, *, durable: bool = False) -> None:
    write_text(path, json.dumps(value, allow_nan=False, indent=1) + "\n", durable=durable)


def write_new_file(names: Iterable[Path], write: Writer) -> Path:
    """Puts what `write` writes under the first of these names in one folder that is free, and returns it.

    Of several processes that ask for one name at once, one gets it; a link that leads nowhere has its name as well.
    Raises OutputError, also where all are taken.
    """
    names = iter(names)
    first = next(names)
    with _told(first), _beside(first) as partial:
        with open(partial, "xb") as file:
            write(file)
        for name in chain([first], names):
            if _claim(partial, name):
                return name
        raise FileExistsError(errno.EEXIST, os.strerror(errno.EEXIST))


def refuse_taken(folder: Path) -> None:
    """OutputError unless `folder` is absent or an empty folder."""
    with _told(folder), suppress(FileNotFoundError):
        folder.lstat()
        if not folder.is_dir() or any(folder.iterdir()):
            raise OutputError(f"cannot write to {folder}: expected a folder that is empty or does not exist yet")


@contextmanager
def new_folder(folder: Path) -> Iterator[Path]:
    """A folder beside `folder` that takes its name when the block has ended, and goes if it has failed. OutputError."""
    refuse_taken(folder)
    with _told(folder):
        target = Path(os.path.realpath(folder))  # a folder cannot take the place of a link
        with _beside(target) as partial:
            partial.mkdir(parents=True)
            yield partial
            os.replace(partial, target)


@contextmanager
def _told(path: AnyPath) -> Iterator[None]:
    """OutputError for what the system refuses."""
    try:
        yield
    except FlashJanusError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the path
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {os.fspath(path)[:200]!r}: {reason}") from error


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A name in the target's folder; what has it is gone afterward."""
    partial = target.parent / f".{os.urandom(8).hex()}.tmp"
    try:
        yield partial
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        with suppress(OSError, ValueError):
            partial.unlink()


def _claim(partial: Path, name: Path) -> bool:
    """Give a whole file this name, unless something has it already."""
    try:
        os.link(partial, name)
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
        os.replace(partial, name)
    except BaseException:
        name.unlink()
        raise
    return True
