"""Pictures as the networks take them, and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import torch
from flashjanus.measure.evaluation import world
from torch import Tensor


def pixels(images: Sequence[np.ndarray[Any, Any]]) -> Tensor:
    """u8 pictures (S, S, 3) as (B, 3, S, S) in [-1, 1], channels-last."""
    x = torch.from_numpy(np.stack(images)).permute(0, 3, 1, 2)
    return (x.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def rendered(scenes: Sequence[world.Scene]) -> Tensor:
    """The scenes' pictures as the networks take them."""
    return pixels([world.render(scene) for scene in scenes])


def to_u8(images: Tensor) -> np.ndarray[tuple[int, ...], np.dtype[np.uint8]]:
    """Pictures (B, S, S, 3) of pixels (B, 3, S, S) in [-1, 1]."""
    return ((images.float().clamp(-1, 1) + 1) * 127.5).round().permute(0, 2, 3, 1).cpu().numpy().astype(np.uint8)
