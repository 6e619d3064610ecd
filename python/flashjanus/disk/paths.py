"""What lies at a path, and why it cannot be read: every cause under its own name.

pathlib's `exists`, `is_file` and `glob` answer "no" for what they may not look at; nothing here does.
"""

from __future__ import annotations

import errno
import os
import stat
from pathlib import Path

from flashjanus.errors import CheckpointError

HEAD_BYTES = 512
_NOT_THERE = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_PART = (".incomplete", ".part", ".crdownload", ".aria2")
"""How names of unfinished downloads end: huggingface_hub, browsers and curl, Chrome, aria2."""


def is_folder(path: Path) -> bool:
    """False where nothing is there. CheckpointError where that cannot be told, or a link leads nowhere."""
    found = _look(path)
    return found is not None and stat.S_ISDIR(found.st_mode)


def is_file(path: Path) -> bool:
    """As `is_folder`; and CheckpointError for a folder, which no part of a checkpoint that is asked for so may be."""
    found = _look(path)
    if found is not None and stat.S_ISDIR(found.st_mode):
        raise CheckpointError(f"{path}: expected a file, got a folder")
    return found is not None


def names_in(folder: Path) -> list[str]:
    """Names in `folder`, sorted, without hidden ones (macOS leaves ._model.safetensors). CheckpointError."""
    try:
        return sorted(name for name in os.listdir(folder) if not name.startswith("."))
    except OSError as error:
        raise cannot_read(folder, error) from None


def check_readable(path: Path) -> None:
    """CheckpointError unless `path` can be opened and its first bytes may be those of a file of weights."""
    try:
        with open(path, "rb") as file:
            head = file.read(HEAD_BYTES)
    except OSError as error:
        raise cannot_read(path, error) from None
    cause = stand_in(head)
    if cause is not None:
        raise CheckpointError(f"{path}: {cause}")


def stand_in(head: bytes) -> str | None:
    """What a file that begins with `head` is in place of the file that it is named as, and what to do; or None."""
    start = head.lstrip().lower()
    if head.startswith(b"version https://git-lfs.github.com/spec/"):
        return "a Git LFS pointer in place of the file; run `git lfs pull` where it was cloned, or fetch it again"
    if b"/annex/objects/" in head[:64]:
        return "a git-annex pointer in place of the file; run `git annex get` where it was cloned, or fetch it again"
    if start.startswith((b"<!doctype html", b"<html", b"<?xml")):
        return "a web page in place of the file, as a download without access leaves; fetch it again"
    return None if head else "an empty file, as a download that was cut short leaves; fetch it again"


def cannot_read(path: Path, error: OSError) -> CheckpointError:
    return CheckpointError(why_unreadable(path, error))


def why_unreadable(path: Path, error: OSError) -> str:
    """Why `path` cannot be read, and what to do."""
    if isinstance(error, FileNotFoundError):
        if not path.is_symlink():
            return f"{path}: no such file"
        return f"{path}: a link to {os.readlink(path)}, which does not exist{unfinished(path.parent)}; fetch it again"
    if isinstance(error, PermissionError):
        return f"{path}: cannot be read: {error.strerror}; give this user access to it and its folders"
    return f"{path}: cannot be read: {error.strerror or error}"


def unfinished(folder: Path) -> str:
    """ " (of an interrupted download, NAME is left)" where that is so of a checkpoint in `folder`, else ""."""
    blobs = folder.parent.parent / "blobs" if folder.parent.name == "snapshots" else folder
    for place in (folder, folder / ".cache" / "huggingface" / "download", blobs):
        try:
            left = [name for name in sorted(os.listdir(place)) if name.endswith(_PART)]
        except OSError:  # the search only improves a message
            continue
        if left:
            return f" (an interrupted download left {place / left[0]})"
    return ""


def _look(path: Path) -> os.stat_result | None:
    try:
        return os.stat(path)
    except ValueError:  # a NUL, which no name has
        return None
    except OSError as error:
        if error.errno not in _NOT_THERE or (error.errno == errno.ENOENT and path.is_symlink()):
            raise cannot_read(path, error) from None
        return None
