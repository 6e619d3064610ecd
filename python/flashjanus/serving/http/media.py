"""Images in a conversation are fetched, measured, and passed on as the bytes of a file, never as a path."""

from __future__ import annotations

import asyncio
import base64
import binascii
import io
from collections.abc import Mapping, Sequence
from typing import Any
from urllib.parse import unquote_to_bytes

from PIL import Image

from flashjanus.errors import InputError
from flashjanus.inputs.decoding import DECODE_ERRORS, decode, formats
from flashjanus.serving.http import remote
from flashjanus.serving.http.errors import ApiError
from flashjanus.serving.http.settings import Settings


async def conversation(
    messages: Sequence[Mapping[str, Any]], settings: Settings, origin: str = "messages"
) -> list[dict[str, Any]]:
    """Turn the API's messages, as dicts, into those of `JanusFlow.chat`, with images as bytes. Raises ApiError.

    Parts are text, input_text, output_text, image_url (a dict with "url", or the URL) and input_image. An error names
    an image as messages[i].content[j], or by the part's "where". The first messages may come from the system, the
    developer, or both. origin: the field that holds the messages.
    """
    turns: list[dict[str, Any]] = []
    texts = images = 0
    for number, message in enumerate(messages):
        role = "system" if message["role"] == "developer" else message["role"]
        content = message["content"]
        parts = [{"type": "text", "text": content}] if isinstance(content, str) else content
        made: list[dict[str, Any]] = []
        for index, part in enumerate(parts):
            where = part.get("where") or f"{origin}[{number}].content[{index}]"
            if part["type"] in ("text", "input_text", "output_text"):
                texts += len(part["text"])
                if texts > settings.prompt_chars:
                    words = f"{origin}: expected at most {settings.prompt_chars} characters of text in all"
                    raise ApiError(400, words, "string_above_max_length", origin)
                made.append({"type": "text", "text": part["text"]})
                continue
            if role != "user":
                words = f"{where}: expected images only in user messages, got one in a message of the {role}"
                raise ApiError(400, words, "invalid_value", where)
            images += 1
            if images > settings.images:
                words = f"{where}: expected at most {settings.images} images in all"
                raise ApiError(400, words, "too_many_images", where)
            source = part["image_url"]
            url = source["url"] if isinstance(source, Mapping) else source
            made.append({"type": "image", "image": await image(url, where, settings)})
        if role == "system" and turns and all(turn["role"] == "system" for turn in turns):
            turns[0]["content"] += [{"type": "text", "text": "\n\n"}, *made]
        else:
            turns.append({"role": role, "content": made})
    return turns


async def image(url: str, where: str, settings: Settings) -> bytes:
    """Return the file that a data: URL contains, or that an https: URL points to if the settings allow it. Raises
    ApiError."""
    head = url[:8].lower()
    try:
        if head.startswith("data:"):
            data = await asyncio.to_thread(_data, url, settings)
        elif head.startswith(("https://", "http://")):
            data = await remote.fetch(url, settings)
        else:
            raise InputError(f"expected a data: URL such as data:image/png;base64,..., got {url:.40}")
        await asyncio.to_thread(_measure, data, settings)
    except InputError as error:
        raise ApiError(400, f"{where}: {error}", "invalid_image", where) from error
    return data


def _data(url: str, settings: Settings) -> bytes:
    head, comma, text = url.partition(",")
    if not comma:
        raise InputError(f"expected data:image/...;base64,..., got {url:.40}")
    if len(text) > 4 * settings.image_bytes:  # percent-encoding takes three characters for a byte
        raise InputError(_too_large(settings))
    data = unquote_to_bytes(text)
    if head.rpartition(";")[2].strip().lower() == "base64":
        plain = b"".join(data.split()).translate(bytes.maketrans(b"-_", b"+/")).rstrip(b"=")
        try:
            data = base64.b64decode(plain + b"=" * (-len(plain) % 4), validate=True)
        except binascii.Error as error:
            raise InputError(f"the data: URL does not hold base64: {error}") from error
    if len(data) > settings.image_bytes:
        raise InputError(_too_large(settings))
    return data


def _too_large(settings: Settings) -> str:
    return f"expected an image of at most {settings.image_bytes} bytes; scale it down"


def _measure(data: bytes, settings: Settings) -> None:
    """Check the size that the file declares before anything decodes it."""
    try:
        with Image.open(io.BytesIO(data), formats=formats()) as opened:
            width, height = opened.size
    except DECODE_ERRORS:
        width, height = decode(io.BytesIO(data), f"the image ({len(data)} bytes)").size  # says what is wrong with it
    if width * height > settings.image_pixels:
        raise InputError(
            f"expected an image of at most {settings.image_pixels} pixels, got {width} x {height}; scale it down"
        )
