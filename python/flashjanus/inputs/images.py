"""Load images of any source as RGB, turn them into the vision encoder's pixels, and turn model output into PIL images.

Source: `VLMImageProcessor` and `unpack` of deepseek-ai/Janus.
"""

from __future__ import annotations

import io
import math
import os
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image, ImageFile
from typing_extensions import Self

from flashjanus.disk.reading import read_json
from flashjanus.engine.runtime.entry import entry
from flashjanus.errors import ConfigError, InputError
from flashjanus.inputs.arrays import image_of
from flashjanus.inputs.decoding import copy_of, decode
from flashjanus.inputs.sources import Readable, from_file, from_path, from_text

ImageSource: TypeAlias = (
    str | os.PathLike[str] | bytes | Readable | Image.Image | npt.NDArray[np.generic] | torch.Tensor
)

MAX_SIDE = 8192  # of the square that the model sees


def load_image(source: ImageSource) -> Image.Image:
    """RGB image of `source`: a path, a `data:` or `file:` URL, encoded bytes, a file open in binary, a PIL image, an
    array or a tensor.

    An animation gives its first frame. The image is rotated as its EXIF data says, and 16-bit gray is scaled to 8 bits.
    Transparent parts are laid on white, as viewers show them (the official code drops alpha and shows the colors hidden
    under it, often black; to get that, pass `image.convert("RGB")`). Arrays are (H, W) or (H, W, C) as in numpy,
    tensors (H, W) or (C, H, W) as in torchvision, with uint8 or with floats from 0 to 1 (see arrays.py). The source is
    not changed, and several threads may share it. Raises `InputError` for anything that is not an image.
    """
    if isinstance(source, np.ndarray | torch.Tensor):
        return image_of(source)
    if isinstance(source, Image.Image):
        return copy_of(source, "the image")
    if isinstance(source, bytes | bytearray | memoryview):
        return decode(io.BytesIO(source), f"the image ({len(source)} bytes)")
    if isinstance(source, str):
        return from_text(source)
    if isinstance(source, os.PathLike):
        return from_path(source)
    if hasattr(source, "read"):
        return from_file(source)
    raise InputError(
        f"expected an image as a path, URL, bytes, binary file, PIL image, array or tensor, got {type(source).__name__}"
    )


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
    def from_file(cls, path: str | Path | None, image_size: int | None = None) -> Self:
        """The settings in `path`, or those of the released model if `path` is None. `image_size` is the size
        of the vision encoder, which is used if the file is absent or does not set one.

        Raises `CheckpointError` for an unreadable file, `ConfigError` for impossible settings or a size that is not
        the encoder's.
        """
        raw = RELEASED if path is None else read_json(Path(path), ConfigError)
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
        """The image with its long side scaled to S (bicubic), in the center of an S x S square of the mean color."""
        if image.mode != "RGB":
            raise InputError(f"expected an RGB image, got mode {image.mode!r}; use load_image")
        if isinstance(image, ImageFile.ImageFile):  # it may not be decoded yet, and other threads may share it
            image = copy_of(image, "the image")
        width, height = image.size
        longest, size = max(width, height), self.image_size
        # this order of operations decides the truncation, hence the size
        scaled = [max(int(side / longest * size), self.min_size) for side in (width, height)]
        image = image.resize((scaled[0], scaled[1]), Image.Resampling.BICUBIC)
        background = [int(mean * 255) for mean in self.image_mean]
        square = Image.new("RGB", (size, size), (background[0], background[1], background[2]))
        square.paste(image, ((size - scaled[0]) // 2, (size - scaled[1]) // 2))
        return square

    @entry
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
