"""An image whose every level is known, and its bytes in any format."""

from __future__ import annotations

import io
from typing import Any

import numpy as np
from PIL import Image

LEVELS = np.random.default_rng(0).integers(0, 256, (30, 40, 3), dtype=np.uint8)
IMAGE = Image.fromarray(LEVELS)


def encoded(kind: str = "PNG", image: Image.Image = IMAGE, **options: Any) -> bytes:
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


PNG = encoded()
