"""Turn arrays and tensors into images: the order of their axes, and the range of their numbers."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import torch
from PIL import Image

from flashjanus.errors import InputError
from flashjanus.inputs.decoding import on_white, to_8_bits

ROUNDING = 1e-3
"""How far floats may exceed [0, 1], since resizing and half precision leave such errors."""


def image_of(array: npt.NDArray[Any] | torch.Tensor) -> Image.Image:
    """RGB image of an array (H, W) or (H, W, C), or of a tensor (H, W) or (C, H, W).

    C is 1 for gray, 2 for gray and alpha, 3 for RGB, and 4 for RGBA. Transparent parts are laid on white. If the usual
    order of axes is impossible, the other order is assumed. The ranges are 0 to 255 for uint8, 0 to 65535 for uint16,
    False (black) and True (white) for bool, and 0 to 1 for floats. Raises InputError.
    """
    is_tensor = isinstance(array, torch.Tensor)
    shown = f"{str(array.dtype).removeprefix('torch.')} {tuple(array.shape)}"
    if isinstance(array, torch.Tensor):
        plain = array.detach().to("cpu")
        values: npt.NDArray[Any] = (plain.float() if plain.is_floating_point() else plain).numpy()
    else:
        values = array
    values = _channels_last(values, is_tensor, shown)
    levels = _levels(values, shown)
    if levels.shape[2] == 1:
        levels = levels[:, :, 0]
    image = Image.fromarray(np.ascontiguousarray(levels))
    return on_white(image) if image.mode in ("LA", "RGBA") else image.convert("RGB")


def _channels_last(values: npt.NDArray[Any], is_tensor: bool, shown: str) -> npt.NDArray[Any]:
    """The array as (H, W, C)."""
    if values.size == 0:
        raise InputError(f"the image is empty: expected an array with pixels, got {shown}")
    if values.ndim == 4:
        raise InputError(f"expected one image, got an array with four axes, {shown}; pass its images one by one")
    if values.ndim == 2:
        return values[:, :, None]
    if values.ndim == 3:
        first, last = (values.shape[axis] <= 4 for axis in (0, 2))
        if first and (is_tensor or not last):
            return np.moveaxis(values, 0, 2)
        if last:
            return values
    raise InputError(
        "expected one image, an array (H, W) or (H, W, C) or a tensor (H, W) or (C, H, W) of 1 to 4 channels, got "
        f"{shown}"
    )


def _levels(values: npt.NDArray[Any], shown: str) -> npt.NDArray[Any]:
    """The values scaled to 0 to 255, uint8. Raises InputError."""
    levels: npt.NDArray[np.uint8]
    if values.dtype == np.uint8:
        return values.astype(np.uint8)
    if values.dtype == np.bool_:
        levels = np.where(values, 255, 0).astype(np.uint8)
        return levels
    if values.dtype.kind == "u" and values.dtype.itemsize == 2:  # in either order of bytes
        return to_8_bits(values)
    if values.dtype.kind != "f":
        raise InputError(f"expected uint8 levels, or floats from 0 to 1, got {shown}; convert it to uint8")
    floats = values.astype(np.float32)
    low, high = float(floats.min()), float(floats.max())
    if not (low >= -ROUNDING and high <= 1 + ROUNDING):  # false for NaN
        raise InputError(
            f"expected floats from 0 to 1, got {shown} from {low:.4g} to {high:.4g}; scale it, or convert levels up to "
            "255 to uint8"
        )
    levels = np.rint(floats.clip(0, 1) * 255).astype(np.uint8)
    return levels
