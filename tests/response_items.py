"""Items of a response's input."""

from __future__ import annotations

from typing import Any

from PIL import Image
from serving_app import data_url

RED = data_url(Image.new("RGB", (80, 60), "red"))
CALL = {"type": "image_generation_call", "id": "ig_1", "result": "AAAA", "output_format": "webp"}


def user(*content: Any) -> dict[str, Any]:
    return {"role": "user", "content": content[0] if content and isinstance(content[0], str) else [*content]}


def says(text: str) -> dict[str, str]:
    return {"type": "input_text", "text": text}


def shows(url: str, **more: str) -> dict[str, str]:
    return {"type": "input_image", "image_url": url, **more}
