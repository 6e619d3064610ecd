"""A store for candidate images until the best are known. A few stay in memory; many go to a file."""

from __future__ import annotations

import tempfile

import numpy as np
import torch

from flashjanus.errors import OutputError

MEMORY = 64 * 2**20
"""Maximum bytes in memory. Beyond it, all images go to a file in the system's temporary folder."""


class Shelf:
    """A store of tensors of one shape and dtype, by place number. It is a context manager, which closes its file.

    Raises OutputError if the file cannot be written.
    """

    def __init__(self) -> None:
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY)  # noqa: SIM115
        self._free: list[int] = []
        self._places = 0
        self._like = torch.empty(0)

    def __enter__(self) -> Shelf:
        return self

    def __exit__(self, *exception: object) -> None:
        self._file.close()

    def put(self, image: torch.Tensor) -> int:
        """Store a copy of `image` in a free place and return the place."""
        self._like = image.new_empty(0).cpu()
        place = self._free.pop() if self._free else self._places
        self._places = max(self._places, place + 1)
        self._shape, data = image.shape, image.cpu().contiguous().numpy().tobytes()
        try:
            self._file.seek(place * len(data))
            self._file.write(data)
        except OSError as error:
            raise OutputError(
                f"the candidates' images cannot be kept in {tempfile.gettempdir()}: {error.strerror or error}; make "
                "room there, set TMPDIR to another folder, or ask for fewer images per prompt"
            ) from error
        return place

    def take(self, place: int) -> torch.Tensor:
        """Return the image at `place`, which becomes free."""
        size = int(np.prod(self._shape)) * self._like.itemsize
        self._file.seek(place * size)
        data = np.frombuffer(bytearray(self._file.read(size)), self._like.numpy().dtype)
        self.drop(place)
        return torch.from_numpy(data).reshape(self._shape)

    def drop(self, place: int) -> None:
        self._free.append(place)
