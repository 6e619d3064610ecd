"""Write images as PNG files whose text says how they were made."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from flashjanus.disk.writing import AnyPath, Writer, whole, write_new_file
from flashjanus.errors import InputError

if TYPE_CHECKING:
    import torch
    from PIL import Image


def save_png(image: Image.Image | torch.Tensor, path: AnyPath, metadata: Mapping[str, str] | None = None) -> None:
    """Writes `path` whole or not at all; `metadata` becomes PNG text (tEXt, or iTXt beyond Latin-1).

    `image`: PIL, or a tensor as in `to_pil`. Raises `OutputError` if the file cannot be written, `InputError` for
    metadata that PNG cannot hold.
    """
    write = png(image, metadata)
    with whole(path) as file:
        write(file)


def save_new_png(
    image: Image.Image | torch.Tensor, names: Iterable[Path], metadata: Mapping[str, str] | None = None
) -> Path:
    """`save_png` under the first of these names that is free, as in `write_new_file`."""
    return write_new_file(names, png(image, metadata))


def png(image: Image.Image | torch.Tensor, metadata: Mapping[str, str] | None) -> Writer:
    """A function that writes an image to a file. Raises InputError for metadata that PNG cannot hold."""
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
    if not isinstance(image, Image.Image):  # only a tensor needs torch, which its caller has imported
        from flashjanus.inputs.images import to_pil

        image = to_pil(image)
    return partial(image.save, format="PNG", pnginfo=text)
