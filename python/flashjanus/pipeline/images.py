"""Images in and out: hostile bytes -> RGB -> the vision encoder's pixels, and model output -> PNG.

Source: `VLMImageProcessor` and `unpack` of deepseek-ai/Janus.
"""

from __future__ import annotations

import base64
import binascii
import contextlib
import io
import math
import os
import secrets
import struct
import zlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageOps, UnidentifiedImageError
from PIL.PngImagePlugin import PngInfo

from flashjanus.errors import ConfigError, InputError, OutputError
from flashjanus.pipeline.tokenizer import read_json_object

ImageSource: TypeAlias = str | os.PathLike[str] | bytes | Image.Image | npt.NDArray[np.uint8]

# PIL's own limit for a decompression bomb, kept even where Image.MAX_IMAGE_PIXELS was raised or removed.
MAX_PIXELS = 178_956_970
# PIL decoders written in Python and C only; EPS for example would start Ghostscript.
FORMATS = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF", "PPM")
MAX_SIDE = 8192  # of the square that the model sees
# What PIL's decoders raise on damaged files.
DECODE_ERRORS = (
    OSError,
    EOFError,
    SyntaxError,
    ValueError,
    TypeError,
    LookupError,
    ArithmeticError,
    AttributeError,
    NotImplementedError,
    MemoryError,
    struct.error,
    zlib.error,
    Image.DecompressionBombError,
)


def load_image(source: ImageSource) -> Image.Image:
    """RGB image of `source`: a path, a `data:` URL, encoded bytes, a PIL image, or uint8 HxWx3 (numpy).

    The first frame of an animation, rotated as its EXIF data says; 16-bit grey is scaled to 8 bits. Transparent parts
    are laid on white, as viewers show them (the official code drops alpha and shows the colours hidden under it,
    often black; to get that, pass `image.convert("RGB")`). Raises `InputError` for everything that is not an image.
    """
    if isinstance(source, np.ndarray):
        if source.dtype != np.uint8 or source.ndim != 3 or source.shape[2] != 3 or source.size == 0:
            raise InputError(f"expected a uint8 array of shape (H, W, 3), got {source.dtype} {source.shape}")
        return Image.fromarray(np.ascontiguousarray(source))
    if isinstance(source, Image.Image):
        return _to_rgb(source, "the image")
    if isinstance(source, bytes | bytearray | memoryview):
        return _decode(io.BytesIO(source), f"the image ({len(source)} bytes)")
    if isinstance(source, str) and source.startswith("data:"):
        return _decode(io.BytesIO(_data_url(source)), "the image in the data: URL")
    if isinstance(source, str) and source.startswith(("http://", "https://", "ftp://")):
        raise InputError(f"images are not fetched from the network; download {source:.80} and pass the file")
    if isinstance(source, str | os.PathLike):
        return _open_file(source)
    raise InputError(f"expected an image as path, bytes, PIL image or uint8 array, got {type(source).__name__}")


def _open_file(source: str | os.PathLike[str]) -> Image.Image:
    shown = repr(os.fspath(source))[:200]
    try:
        path = Path(source)
        if path.exists() and not path.is_file():  # a pipe would block, a device never end
            raise InputError(f"image {shown} is not a regular file")
        with path.open("rb") as file:
            return _decode(file, f"image {shown}")
    except InputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the path
        reason = getattr(error, "strerror", None) or error
        raise InputError(f"cannot read the image {shown}: {reason}") from error


def _data_url(url: str) -> bytes:
    head, comma, data = url.partition(",")
    if not comma or not head.endswith(";base64"):
        raise InputError(f"expected data:image/...;base64,..., got {url:.40}")
    try:
        return base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise InputError(f"the data: URL does not hold base64: {error}") from error


def _decode(file: IO[bytes], name: str) -> Image.Image:
    try:
        image = Image.open(file, formats=FORMATS)
    except UnidentifiedImageError as error:
        raise InputError(f"{name} is not an image; expected one of {', '.join(FORMATS)}") from error
    except DECODE_ERRORS as error:
        raise InputError(f"{name} cannot be opened: {error}") from error
    return _to_rgb(image, name)


def _to_rgb(image: Image.Image, name: str) -> Image.Image:
    """8-bit RGB copy; decodes lazily opened images, after a look at the size they declare."""
    width, height = image.size
    if width <= 0 or height <= 0:
        raise InputError(f"{name} is empty: {width} x {height} pixels")
    if width * height > MAX_PIXELS:
        raise InputError(f"{name} is too large: {width} x {height} pixels, at most {MAX_PIXELS} in all; scale it down")
    is_png = image.format == "PNG"  # transposing forgets it
    try:
        image.load()
        image = ImageOps.exif_transpose(image)
        if image.mode.startswith("I;16") or (image.mode == "I" and is_png):
            image = _from_16_bit(image)
        elif image.mode in ("I", "F"):
            raise InputError(f"{name} has 32-bit pixels (mode {image.mode!r}) of unknown range; convert it to 8 bits")
        if image.mode in ("LA", "La", "PA", "RGBA", "RGBa") or "transparency" in image.info:
            return _on_white(image)
        return image.convert("RGB")
    except InputError:
        raise
    except DECODE_ERRORS as error:
        raise InputError(f"{name} is damaged and cannot be decoded: {error}") from error


def _from_16_bit(image: Image.Image) -> Image.Image:
    """Grey 0..65535 -> 0..255: round(v / 257). PIL's own conversion would clip at 255."""
    grey = np.asarray(image).astype(np.int64).clip(0, 65535)
    return Image.fromarray(((grey + 128) // 257).astype(np.uint8))


def _on_white(image: Image.Image) -> Image.Image:
    # "La" and "RGBa" (premultiplied) convert to RGBA only by way of their plain form
    plain = {"La": "LA", "RGBa": "RGBA"}.get(image.mode)
    rgba = (image.convert(plain) if plain else image).convert("RGBA")
    white = Image.new("RGBA", rgba.size, (255, 255, 255, 255))
    return Image.alpha_composite(white, rgba).convert("RGB")


RELEASED: dict[str, Any] = {"image_mean": [0.5, 0.5, 0.5], "image_std": [0.5, 0.5, 0.5]}
"""Where the released model's preprocessor_config.json differs from the official code's defaults."""


@dataclass(frozen=True)
class ImageProcessor:
    """preprocessor_config.json; the defaults are those of the official code (CLIP's mean), not of the released file."""

    image_size: int
    min_size: int = 14
    image_mean: tuple[float, ...] = (0.48145466, 0.4578275, 0.40821073)
    image_std: tuple[float, ...] = (0.26862954, 0.26130258, 0.27577711)
    rescale_factor: float = 1.0 / 255.0
    do_normalize: bool = True

    @classmethod
    def from_file(cls, path: str | Path | None, image_size: int | None = None) -> ImageProcessor:
        """Settings of `path`, or where there is none those of the released model; `image_size`, the vision encoder's,
        is used where the file is absent or silent.

        Raises `CheckpointError` for an unreadable file, `ConfigError` for impossible settings or a size that is not
        the encoder's.
        """
        raw = RELEASED if path is None else read_json_object(Path(path))
        source = str(path or "the default image settings")
        values = {key: raw[key] for key in cls.__dataclass_fields__ if key in raw}
        size = values.setdefault("image_size", image_size)
        for key in ("image_size", "min_size"):
            value = values.get(key, 14)
            if type(value) is not int or not 0 < value <= MAX_SIDE:
                raise ConfigError(f"{source}: {key} must be an integer from 1 to {MAX_SIDE}, got {value!r}")
        if image_size is not None and size != image_size:
            raise ConfigError(
                f"{source}: image_size is {size}, but the vision encoder of config.json takes {image_size}"
            )
        if values.get("min_size", 14) > size:
            raise ConfigError(f"{source}: min_size {values.get('min_size', 14)} is larger than image_size {size}")
        for key in ("image_mean", "image_std"):
            if key in values:
                values[key] = _three_numbers(values[key], f"{source}: {key}")
        if 0.0 in values.get("image_std", ()):
            raise ConfigError(f"{source}: image_std must not contain 0")
        if not _is_number(values.get("rescale_factor", 1.0)):
            raise ConfigError(f"{source}: rescale_factor must be a number, got {values['rescale_factor']!r}")
        if not isinstance(values.get("do_normalize", True), bool):
            raise ConfigError(f"{source}: do_normalize must be true or false, got {values['do_normalize']!r}")
        return cls(**values)

    def resize(self, image: Image.Image) -> Image.Image:
        """The image with its long side scaled to S (bicubic), in the centre of an S x S square of the mean colour."""
        if image.mode != "RGB":
            raise InputError(f"expected an RGB image, got mode {image.mode!r}; use load_image")
        width, height = image.size
        longest, size = max(width, height), self.image_size
        # this order of operations decides the truncation, hence the size
        scaled = [max(int(side / longest * size), self.min_size) for side in (width, height)]
        image = image.resize((scaled[0], scaled[1]), Image.Resampling.BICUBIC)
        background = [int(mean * 255) for mean in self.image_mean]
        square = Image.new("RGB", (size, size), (background[0], background[1], background[2]))
        square.paste(image, ((size - scaled[0]) // 2, (size - scaled[1]) // 2))
        return square

    def preprocess(self, image: Image.Image) -> torch.Tensor:
        """(3, S, S) fp32: (u8 * rescale_factor - mean) / std of the resized RGB image."""
        pixels = torch.from_numpy(np.array(self.resize(image))).permute(2, 0, 1)
        levels = torch.from_numpy((np.arange(256) * self.rescale_factor).astype(np.float32)).expand(3, 256)
        if self.do_normalize:
            mean, std = torch.tensor([self.image_mean, self.image_std], dtype=torch.float32)[:, :, None]
            levels = (levels - mean) / std
        return torch.stack([table[channel.long()] for table, channel in zip(levels, pixels, strict=True)])


def _is_number(value: object) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool) and math.isfinite(value)


def _three_numbers(value: object, name: str) -> tuple[float, ...]:
    if not isinstance(value, list | tuple) or len(value) != 3 or not all(map(_is_number, value)):
        raise ConfigError(f"{name} must be three numbers, got {value!r}")
    return tuple(float(number) for number in value)


def to_pil(image: torch.Tensor) -> Image.Image:
    """RGB image of (3, H, W) in [-1, 1]: `trunc(clip((x + 1) / 2 * 255, 0, 255))`, as the official code unpacks.

    Raises `InputError` for another shape or type and for values that are not finite.
    """
    if image.ndim != 3 or image.shape[0] != 3 or image.numel() == 0 or not image.is_floating_point():
        raise InputError(f"expected a floating-point tensor (3, H, W), got {image.dtype} {tuple(image.shape)}")
    pixels = image.detach().to("cpu", torch.float32)
    if not bool(pixels.isfinite().all()):
        raise InputError("the image has values that are not finite; decode the latents in fp32 or bf16, not fp16")
    levels = ((pixels + 1) / 2 * 255).clamp(0, 255).to(torch.uint8)
    return Image.fromarray(levels.permute(1, 2, 0).contiguous().numpy())


def save_png(
    image: Image.Image | torch.Tensor, path: str | os.PathLike[str], metadata: Mapping[str, str] | None = None
) -> None:
    """Writes `path` whole or not at all; `metadata` becomes PNG text (tEXt, or iTXt beyond Latin-1).

    `image`: PIL, or a tensor as in `to_pil`. Raises `OutputError` if the file cannot be written, `InputError` for
    metadata that PNG cannot hold.
    """
    text = PngInfo()
    for key, value in (metadata or {}).items():
        try:
            if not (1 <= len(key.encode("latin-1")) <= 79) or "\0" in key + value:
                raise ValueError("keys are 1 to 79 Latin-1 characters, NUL is not allowed")
            text.add_text(key, value)
        except ValueError as error:  # includes UnicodeEncodeError
            raise InputError(f"PNG text {key!r:.80} cannot be written: {error}") from error
    picture = to_pil(image) if isinstance(image, torch.Tensor) else image
    target = Path(path)
    partial = target.parent / f".{secrets.token_hex(8)}.tmp"
    try:
        if target.exists() and not target.is_file():  # os.replace would put a file in the place of a device
            raise OutputError(f"cannot write {target}: it exists and is not a regular file")
        with open(partial, "xb") as file:
            picture.save(file, format="PNG", pnginfo=text)
        os.replace(partial, target)
    except OutputError:
        raise
    except (OSError, ValueError) as error:  # ValueError: a NUL or a lone surrogate in the path
        reason = getattr(error, "strerror", None) or error
        raise OutputError(f"cannot write {str(target)[:200]!r}: {reason}") from error
    finally:
        with contextlib.suppress(OSError, ValueError):
            partial.unlink()
