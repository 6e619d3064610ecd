"""Decode untrusted bytes to an 8-bit RGB image, or raise an error that names the cause."""

from __future__ import annotations

import io
import struct
import threading
import zlib
from functools import cache
from typing import IO

import numpy as np
from PIL import Image, UnidentifiedImageError, features

from flashjanus.errors import InputError

# PIL's own limit for a decompression bomb, kept even where Image.MAX_IMAGE_PIXELS was raised or removed.
MAX_PIXELS = 178_956_970
# PIL decoders written in Python and C only; EPS for example would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM", "AVIF", "JPEG2000")
# What PIL's decoders raise on damaged files.
DECODE_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    AttributeError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)
ORIENTATION = 0x0112
TURNS = {
    2: Image.Transpose.FLIP_LEFT_RIGHT,
    3: Image.Transpose.ROTATE_180,
    4: Image.Transpose.FLIP_TOP_BOTTOM,
    5: Image.Transpose.TRANSPOSE,
    6: Image.Transpose.ROTATE_270,
    7: Image.Transpose.TRANSVERSE,
    8: Image.Transpose.ROTATE_90,
}
PNG_SIGNATURE = b"\x89PNG\r\n\x1a\n"
PNG_CHUNKS = {b"IHDR", b"PLTE", b"tRNS", b"IDAT", b"IEND", b"eXIf"}
# Files that people mistake for images, by their first bytes.
LOOKALIKES = (
    ((b"%PDF",), "a PDF; render its page to PNG"),
    ((b"%!PS",), "PostScript; render it to PNG"),
    ((b"<svg", b"<?xml"), "XML, such as SVG; render it to PNG"),
    ((b"<!doctype html", b"<html"), "a web page; download the image itself"),
    ((b"version https://git-lfs",), "a pointer of Git LFS; run `git lfs pull` for the file itself"),
)
HEIF_BRANDS = (b"heic", b"heix", b"hevc", b"heim", b"heis", b"mif1", b"msf1")

_borrowed = threading.Lock()
"""Held while a caller's image is loaded, since PIL decodes in place and several threads may share the image."""


@cache
def formats() -> tuple[str, ...]:
    """The FORMATS that this Pillow supports. `Image.open` raises KeyError for any other name."""
    Image.init()
    return tuple(name for name in FORMATS if name in Image.OPEN)


def decode(file: IO[bytes], name: str) -> Image.Image:
    """Decode the image in a seekable file to RGB. Raises InputError.

    If the comments of a PNG are damaged or larger than PIL allows, it is read without them, as viewers do.
    """
    try:
        return _decoded(file, name)
    except InputError:
        bare = _without_comments(file)
        if bare is None:
            raise
        return _decoded(io.BytesIO(bare), name)


def copy_of(image: Image.Image, name: str) -> Image.Image:
    """RGB copy of a caller's image, which other threads may be reading as well. Raises InputError."""
    _check_size(image, name)
    with _borrowed:
        if getattr(image, "tile", None) and getattr(image, "fp", None) is None:
            raise InputError(f"{name} was opened lazily, and its file is closed; load() it before that, or copy() it")
        try:
            image.load()
            orientation, copy = _orientation(image), image.copy()
        except DECODE_ERRORS as error:
            raise _fault(error, name) from error
    return _rgb(copy, orientation, image.format == "PNG", name)


def _decoded(file: IO[bytes], name: str) -> Image.Image:
    image = opened(file, name)
    return _rgb(image, _orientation(image), image.format == "PNG", name)


def opened(file: IO[bytes], name: str) -> Image.Image:
    """Load an encoded image with PIL, without rotating or converting it. Raises InputError."""
    file.seek(0)
    try:
        image = Image.open(file, formats=formats())
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image{_lookalike(file)}; expected one of {', '.join(FORMATS)}") from error
    except DECODE_ERRORS as error:
        raise _fault(error, name) from error
    _check_size(image, name)
    try:
        image.load()
    except DECODE_ERRORS as error:
        raise _fault(error, name) from error
    return image


def _check_size(image: Image.Image, name: str) -> None:
    """Check the declared size before anything is decoded. Raises InputError."""
    width, height = image.size
    if width <= 0 or height <= 0:
        raise InputError(f"{name} is empty: {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} is too large: {width} x {height} pixels, at most {MAX_PIXELS} in all; scale it down")


def _orientation(image: Image.Image) -> int:
    """The EXIF orientation of a loaded image, or 1 (as stored) if its metadata cannot be read."""
    try:
        return int(image.getexif().get(ORIENTATION, 1))
    except DECODE_ERRORS:  # the pixels are whole, and viewers show them
        return 1


def _rgb(image: Image.Image, orientation: int, is_png: bool, name: str) -> Image.Image:
    """Rotate a loaded image, convert it to 8-bit RGB, and lay it on white. No other thread may hold the image."""
    try:
        # not ImageOps.exif_transpose: that writes the metadata anew, and fails on a field that has another type
        if orientation in TURNS:
            image = image.transpose(TURNS[orientation])
        if image.mode.startswith("I;16") or (image.mode == "I" and is_png):
            image = _from_16_bit(image)
        elif image.mode in ("I", "F"):
            raise InputError(f"{name} has 32-bit pixels (mode {image.mode!r}) of unknown range; convert it to 8 bits")
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            return on_white(image)
        return image.convert("RGB")
    except InputError:
        raise
    except DECODE_ERRORS as error:
        raise _fault(error, name) from error


def _fault(error: Exception, name: str) -> InputError:
    """The error for an image that did not decode. The cause need not be the image itself."""
    if isinstance(error, Image.DecompressionBombError):
        return InputError(f"{name} is too large: {error}")
    if isinstance(error, MemoryError):
        return InputError(f"{name} does not fit into memory; scale it down")
    if isinstance(error, OSError) and error.errno is not None:
        return InputError(f"{name} cannot be read: {error.strerror}")
    if isinstance(error, OSError) and "not available" in str(error):
        return InputError(f"{name} needs a decoder that this build of Pillow lacks ({error}); convert it to PNG")
    return InputError(f"{name} is damaged and cannot be decoded: {error}")


def _lookalike(file: IO[bytes]) -> str:
    """Words for what a file that is not an image seems to be, or an empty string."""
    file.seek(0)
    head = file.read(64)
    if not head:
        return ": it is empty"
    if head[4:8] == b"ftyp":
        brand = head[8:12]
        if brand in HEIF_BRANDS:
            return ": it seems to be HEIC, which Pillow does not read; convert it to JPEG"
        if brand in (b"avif", b"avis") and not ("AVIF" in formats() and features.check("avif")):
            return ": it seems to be AVIF, which this build of Pillow does not read; convert it to PNG"
    start = head.lstrip(b"\xef\xbb\xbf \t\r\n").lower()
    for beginnings, what in LOOKALIKES:
        if any(start.startswith(beginning.lower()) for beginning in beginnings):
            return f": it seems to be {what}"
    return ""


def _without_comments(file: IO[bytes]) -> bytes | None:
    """A PNG reduced to its pixel chunks and EXIF. None if the file is not a PNG or has no other chunks."""
    file.seek(0)
    if file.read(8) != PNG_SIGNATURE:
        return None
    kept, dropped = [PNG_SIGNATURE], False
    while len(head := file.read(8)) == 8:
        length, kind = struct.unpack(">I4s", head)
        body = file.read(length + 4)  # and the checksum
        if kind in PNG_CHUNKS:
            kept += [head, body]
        else:
            dropped = True
    return b"".join(kept) if dropped else None


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Gray 0..65535 -> 0..255: round(v / 257). PIL's own conversion would clip at 255."""
    return Image.fromarray(to_8_bits(np.asarray(image)))


def to_8_bits(levels: np.ndarray) -> np.ndarray:
    """0..65535 -> 0..255: round(v / 257), in uint8."""
    return ((levels.astype(np.int64).clip(0, 65535) + 128) // 257).astype(np.uint8)


def on_white(image: Image.Image) -> Image.Image:
    """Lay an image with transparent parts on white and convert it to RGB."""
    # "La" and "RGBa" (premultiplied) convert to RGBA only by way of their plain form
    plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    rgba = (image.convert(plain) if plain else image).convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")
