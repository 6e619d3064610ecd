"""Encodes pictures for replies: resized as requested, compressed, in base64."""

from __future__ import annotations

import base64
import io
import re
from dataclasses import dataclass

from PIL import Image, ImageOps

from flashjanus.errors import InputError
from flashjanus.serving.messages import Picture

FORMATS = ("png", "jpeg", "webp")
MIN_SIDE = 16
_SIZE = re.compile(r"([1-9]\d{0,5})x([1-9]\d{0,5})")


@dataclass(frozen=True)
class Rendering:
    """How to encode pictures. size: width and height."""

    format: str
    quality: int
    size: tuple[int, int]

    def base64(self, picture: Picture) -> str:
        """Encode a picture in base64. This takes milliseconds, so run it on a thread."""
        image = Image.fromarray(picture)
        if image.size != self.size:
            image = ImageOps.fit(image, self.size, Image.Resampling.LANCZOS)
        file = io.BytesIO()
        if self.format == "png":
            image.save(file, "PNG")
        elif self.format == "jpeg":
            # chroma subsampling would blur colored edges
            image.save(file, "JPEG", quality=max(1, self.quality), subsampling=0)
        else:
            image.save(file, "WEBP", quality=self.quality)
        return base64.b64encode(file.getvalue()).decode()


def size_of(text: str, most: int) -> tuple[int, int] | None:
    """Parse "WxH" into width and height; "auto" gives None. Raises InputError."""
    if text == "auto":
        return None
    found = _SIZE.fullmatch(text)
    sides = (0, 0) if found is None else (int(found[1]), int(found[2]))
    if not all(MIN_SIDE <= side <= most for side in sides):
        expected = f"'auto' or 'WIDTHxHEIGHT' with sides from {MIN_SIDE} to {most}"
        raise InputError(f"size: expected {expected}, got {text!r:.80}")
    return sides
