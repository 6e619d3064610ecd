"""Where images are written. Names overwrite nothing, and the folder is checked before the long work starts."""

from __future__ import annotations

import errno
import os
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from flashjanus.disk.names import slug
from flashjanus.disk.writing import refuse_taken
from flashjanus.errors import InputError, OutputError

if TYPE_CHECKING:
    import PIL.Image

LONGEST_NAME = 200
"""Bytes. Most file systems allow 255, and a number may be added to a name."""


def free_folder(text: str) -> Path:
    """The folder that a command writes to as a whole, named by its argument DST. Raises OutputError if it is taken."""
    if not text:
        raise OutputError("DST is empty: expected a folder that is empty or does not exist yet")
    refuse_taken(Path(text))
    return Path(text)


class Destination:
    """`out` is FILE.png for one image, else a folder that receives <slug>-<seed>.png.

    Raises InputError for several images in one file or another file type, and OutputError if it cannot be written.
    """

    def __init__(self, out: str, images: int, overwrite: bool) -> None:
        if not out:
            raise InputError("--out is empty: expected a folder or FILE.png")
        self.overwrite = overwrite
        self._taken: set[Path] = set()
        self._numbers: dict[Path, int] = {}
        path = Path(out)
        is_folder = out.endswith(("/", os.sep)) or os.path.isdir(path)
        if not is_folder and path.suffix.lower() in {".jpg", ".jpeg", ".webp", ".gif", ".bmp", ".tif", ".tiff"}:
            raise InputError(f"--out {out}: only PNG is written; use {path.with_suffix('.png')}")
        self.file = path if not is_folder and path.suffix.lower() == ".png" else None
        self.folder = path.parent if self.file else path
        if self.file is not None and images > 1:
            raise InputError(f"--out {out} is one file for {images} images; expected a folder, such as {path.stem}/")
        self._check()

    def save(self, image: PIL.Image.Image, prompt: str, seed: int, metadata: Mapping[str, str]) -> Path:
        """Write the image of `prompt` and `seed` under a free name and return its path.

        With overwrite, an existing file is replaced, but never one that this object has written. Raises OutputError.
        """
        from flashjanus.api.png import save_new_png, save_png

        self.make_folder()
        first = self.file or self.folder / f"{slug(prompt)}-{seed}.png"
        if self.overwrite:
            path = next(name for name in self._names(first) if name not in self._taken)
            save_png(image, path, metadata)
        else:
            path = save_new_png(image, self._names(first), metadata)
        self._taken.add(path)
        return path

    def _names(self, first: Path) -> Iterator[Path]:
        """Yield `first`, then `first` with numbers, without the names that earlier calls yielded."""
        while True:
            number = self._numbers[first] = self._numbers.get(first, 0) + 1
            yield first if number == 1 else first.with_stem(f"{first.stem}-{number}")

    def make_folder(self) -> None:
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise _cannot_write(self.folder, error) from error

    def _check(self) -> None:
        """Check that the nearest existing folder is writable, with a temporary file that leaves no trace."""
        if self.file is not None and len(os.fsencode(self.file.name)) > LONGEST_NAME:
            raise OutputError(
                f"{self.file.name[:40]}...: file name longer than {LONGEST_NAME} bytes; use a shorter one"
            )
        try:
            existing = self.folder
            while not _exists(existing):
                existing = existing.parent
            if not existing.is_dir():
                raise NotADirectoryError(errno.ENOTDIR, os.strerror(errno.ENOTDIR))
            with tempfile.TemporaryFile(dir=existing):
                pass
        except OSError as error:
            raise _cannot_write(self.folder, error) from error


def _exists(path: Path) -> bool:
    try:
        path.lstat()
    except FileNotFoundError:
        return False
    return True


def _cannot_write(folder: Path, error: OSError) -> OutputError:
    return OutputError(f"cannot write to {folder}: {error.strerror or error}; choose another place with --out")
