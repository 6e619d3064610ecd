"""Parses a request's body into its model, or raises an error that names the field."""

from __future__ import annotations

import asyncio
from typing import TypeVar

from fastapi import Request
from pydantic import BaseModel, ValidationError

from flashjanus.serving.http.errors import ApiError, invalid

SMALL = 65_536
"""The largest body in bytes that is parsed on the event loop. A thread parses larger ones, which would block the
loop."""
Model = TypeVar("Model", bound=BaseModel)


async def read(request: Request, model: type[Model], seconds: float) -> Model:
    """Read and parse a body. Raises ApiError if it is not JSON, does not arrive within `seconds`, or does not fit
    the model."""
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        words = f"expected the header 'Content-Type: application/json', got {kind[:80] or 'none'!r}"
        raise ApiError(415, words, "unsupported_media_type")
    try:
        body = await asyncio.wait_for(request.body(), seconds)
    except asyncio.TimeoutError as error:
        raise ApiError(408, f"expected the whole body within {seconds:g} s", "body_timeout") from error
    if len(body) <= SMALL:
        return _parsed(model, body)
    return await asyncio.to_thread(_parsed, model, body)


def _parsed(model: type[Model], body: bytes) -> Model:
    try:
        return model.model_validate_json(body)
    except ValidationError as error:
        raise invalid(error.errors(include_url=False)) from error
